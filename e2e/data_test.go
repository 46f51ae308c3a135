package e2e_test

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/volley-run/volley/internal/testenv"
)

// dataClips returns the real clips by name.
func dataClips(t *testing.T) map[string]string {
	t.Helper()
	dir := testenv.Data(t, "video")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	clips := map[string]string{}
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".mp4", ".webm", ".mkv":
			clips[strings.TrimSuffix(e.Name(), filepath.Ext(e.Name()))] = filepath.Join(dir, e.Name())
		}
	}
	if len(clips) == 0 {
		t.Fatalf("there are no clips in %s", dir)
	}
	return clips
}

func TestGreyscaleOfEveryRealClipIsExact(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg, testenv.DataFiles)
	for name, input := range dataClips(t) {
		t.Run(name, func(t *testing.T) { checkGreyscale(t, input) })
	}
}

func checkGreyscale(t *testing.T, input string) {
	t.Helper()
	fast := []string{"--set", "encode.preset=ultrafast"}
	fused, apart := filepath.Join(t.TempDir(), "fused"), filepath.Join(t.TempDir(), "apart")
	r := runJSON(t, append([]string{"grayscale", input, "-o", fused}, fast...)...)
	runJSON(t, append([]string{"grayscale", input, "-o", apart, "--no-fuse"}, fast...)...)

	source, _ := probe(t, input, "video")
	rate := ratio(t, source.FrameRate)
	want := sourceTimes(t, input)
	got := outputPictures(t, fused, "yuv420p")
	if len(got) != len(want) || r.Frames != len(want) {
		t.Fatalf("%d frames, result.json says %d, the source has %d", len(got), r.Frames, len(want))
	}
	checkSteps(t, got, rate)
	for i := range got {
		if math.Abs(got[i].at-want[i]) > 0.00101 {
			t.Fatalf("frame %d is shown at %.6f s, in the source at %.6f s", i, got[i].at, want[i])
		}
	}
	if d := float64(len(want)) / rate; math.Abs(r.Duration-d) > 1/rate {
		t.Errorf("duration %.4f s, want %.4f s", r.Duration, d)
	}
	checkSame(t, outputPictures(t, apart, "yuv420p"), got, 0)
	if d := chroma(t, track(t, fused, "video")); d > 1 {
		t.Errorf("chroma is up to %g from grey", d)
	}
	aspect := ratio(t, source.SampleAspect)
	checkAspect(t, fused, aspect)
	if s, _ := probe(t, track(t, fused, "video"), "video"); s.Width != source.Width || s.Height != source.Height {
		t.Errorf("size %dx%d, the source has %dx%d", s.Width, s.Height, source.Width, source.Height)
	}
	audio, hasAudio := probe(t, input, "audio")
	if hasAudio {
		checkSound(t, input, fused)
		if a, _ := probe(t, track(t, fused, "audio"), "audio"); a.Channels != audio.Channels {
			t.Errorf("%d channels of sound, the source has %d", a.Channels, audio.Channels)
		}
	} else if exists(t, fused, "audio.m3u8") {
		t.Error("has sound, and the source has none")
	}
	address := serveResult(t, fused)
	for _, manifest := range []string{"manifest.mpd", "playlist.m3u8"} {
		decodeOverHTTP(t, address+manifest, len(want), hasAudio)
	}
}

// sourceTimes returns when the frames of a clip are shown.
func sourceTimes(t *testing.T, input string) []float64 {
	t.Helper()
	pics := pictures(t, "gray", "scale=16:16:flags=neighbor", input)
	times := make([]float64, len(pics))
	for i := range pics {
		times[i] = pics[i].at
	}
	return times
}

// decodeOverHTTP decodes a result as a player would and counts its frames.
func decodeOverHTTP(t *testing.T, address string, frames int, audio bool) {
	t.Helper()
	args := []string{"-xerror", "-i", address, "-map", "0:v:0", "-fps_mode", "passthrough", "-f", "framecrc", "-"}
	if audio {
		args = append(args, "-map", "0:a:0", "-f", "null", "-")
	}
	n := len(regexp.MustCompile(`(?m)^0,`).FindAllString(ffmpeg(t, args...), -1))
	if n != frames {
		t.Errorf("%s: decoded %d frames over HTTP, want %d", filepath.Base(address), n, frames)
	}
}

func TestQualityAndSizeAreThoseOfPlainFFmpeg(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg, testenv.DataFiles)
	for _, name := range []string{"bbb-480p-30s.mp4", "sintel-trailer-52s.mp4"} {
		t.Run(name, func(t *testing.T) {
			input := testenv.Data(t, "video", name)
			dir := filepath.Join(t.TempDir(), "out")
			runJSON(t, "grayscale", input, "-o", dir)
			plain := filepath.Join(t.TempDir(), "plain.mp4")
			ffmpeg(t, "-i", input, "-an", "-vf", "hue=s=0", "-c:v", "libx264", "-preset", "medium", "-crf", "23", "-pix_fmt", "yuv420p", plain)
			ours := track(t, dir, "video")
			got, want := psnr(t, ours, input, "hue=s=0"), psnr(t, plain, input, "hue=s=0")
			size, plainSize := packetBytes(t, ours), packetBytes(t, plain)
			more := 100 * (float64(size)/float64(plainSize) - 1)
			t.Logf("luma PSNR %.3f dB, plain FFmpeg %.3f dB; %d bytes of video, plain FFmpeg %d (%+.2f %%)", got, want, size, plainSize, more)
			if got < want-0.3 {
				t.Errorf("luma PSNR %.3f dB, plain FFmpeg gets %.3f dB", got, want)
			}
			if more > 8 {
				t.Errorf("%.1f %% more bytes than plain FFmpeg", more)
			}
		})
	}
}

// psnr compares a video with what the filter makes of its source.
func psnr(t *testing.T, path, source, vf string) float64 {
	t.Helper()
	text := tool(t, "sh", "-c", `exec ffmpeg -nostdin -hide_banner -nostats -i "$0" -i "$1" -lavfi "[0:v]settb=AVTB,setpts=N[a];[1:v]$2,settb=AVTB,setpts=N[b];[a][b]psnr" -f null - 2>&1`, path, source, vf)
	m := regexp.MustCompile(`PSNR y:([0-9.]+)`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no PSNR:\n%s", text)
	}
	return number(t, m[1])
}

// packetBytes sums up the encoded video, without its container.
func packetBytes(t *testing.T, path string) int64 {
	t.Helper()
	var sum int64
	for line := range strings.Lines(tool(t, "ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", "packet=size", "-of", "csv=p=0", path)) {
		var n int64
		if _, err := fmt.Sscan(strings.Trim(strings.TrimSpace(line), ","), &n); err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}
