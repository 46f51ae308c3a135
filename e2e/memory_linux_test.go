package e2e_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/volley-run/volley/internal/testenv"
)

// peaks are the largest resident sets, in KiB, of the processes of a run.
type peaks struct{ coordinator, worker, ffmpeg int }

func (p peaks) sum() int { return p.coordinator + p.worker + p.ffmpeg }

// residentPeaks runs volley and watches its processes.
func residentPeaks(t *testing.T, args ...string) peaks {
	t.Helper()
	tag := mark(t)
	p := startVolley(t, []string{tag}, args...)
	var top peaks
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for p.running() {
		for _, pid := range marked(t, tag, "") {
			kib, line := highWater(pid)
			switch {
			case pid == p.cmd.Process.Pid:
				top.coordinator = max(top.coordinator, kib)
			case strings.Contains(line, "volley worker"):
				top.worker = max(top.worker, kib)
			default:
				top.ffmpeg = max(top.ffmpeg, kib)
			}
		}
		select {
		case <-look.C:
		case <-p.done:
		}
	}
	if e := p.wait(t); e.code != 0 {
		t.Fatalf("exit status %d\n%s", e.code, e.stderr)
	}
	return top
}

// highWater returns a process's VmHWM and command line; 0 if it is gone.
func highWater(pid int) (kib int, line string) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return 0, ""
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		return 0, ""
	}
	kib, _ = strconv.Atoi(string(m[1]))
	text, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
	return kib, strings.ReplaceAll(string(text), "\x00", " ")
}

func TestMemoryDoesNotGrowWithTheLengthOfTheInput(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg)
	args := append(testPicture("640x360", "24", 6), testNoise(6)...)
	short := clip(t, "short.mp4", append(append(args, x264("-g", "48")...), "-c:a", "aac", "-shortest")...)
	long := looped(t, short, 10)
	for _, format := range []string{"dash", "mp4"} {
		t.Run(format, func(t *testing.T) {
			measure := func(input string) peaks {
				return residentPeaks(t, "run", "grayscale", input, "-o", filepath.Join(t.TempDir(), "out"), "-q", "--chunk", "1s", "--workers", "2", "--format", format, "--set", "encode.preset=ultrafast")
			}
			a, b := measure(short), measure(long)
			t.Logf("peak resident memory in MiB: 6 s: coordinator %d, worker %d, its FFmpeg %d; 60 s: %d, %d, %d",
				a.coordinator>>10, a.worker>>10, a.ffmpeg>>10, b.coordinator>>10, b.worker>>10, b.ffmpeg>>10)
			if float64(b.sum()) > 1.3*float64(a.sum()) {
				t.Errorf("%d KiB for 60 s of video, %d KiB for 6 s", b.sum(), a.sum())
			}
			if x, y := a.coordinator+a.worker, b.coordinator+b.worker; float64(y) > 1.3*float64(x) {
				t.Errorf("coordinator and worker: %d KiB for 60 s of video, %d KiB for 6 s", y, x)
			}
		})
	}
}
