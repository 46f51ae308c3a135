package e2e_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// picture is one decoded frame: when it is shown, in seconds from the start of
// the file, and the MD5 sum of its pixels.
type picture struct {
	at  float64
	sum string
}

// pictures decodes the video of a file. With vf the frames go through a filter
// first; the pixels are compared as pixFmt.
func pictures(t *testing.T, pixFmt, vf string, input ...string) []picture {
	t.Helper()
	filters := "format=" + pixFmt
	if vf != "" {
		filters = vf + "," + filters
	}
	args := append(slices.Clone(input[:len(input)-1]), "-i", input[len(input)-1], "-map", "0:v:0", "-vf", filters,
		"-fps_mode", "passthrough", "-enc_time_base", "-1", "-f", "framemd5", "-",
		// FFmpeg's clock starts with the first of the streams that it uses.
		"-map", "0", "-c", "copy", "-f", "null", "-")
	return parsePictures(t, ffmpeg(t, args...))
}

func parsePictures(t *testing.T, text string) []picture {
	t.Helper()
	tick := 0.0
	var out []picture
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "#tb 0: "); ok {
			num, den, _ := strings.Cut(strings.TrimSpace(rest), "/")
			tick = number(t, num) / number(t, den)
		}
		fields := strings.Split(line, ",")
		if strings.HasPrefix(line, "#") || len(fields) != 6 {
			continue
		}
		out = append(out, picture{number(t, fields[2]) * tick, strings.TrimSpace(fields[5])})
	}
	return out
}

func number(t *testing.T, s string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// track puts the initialisation segment and all segments of a result's track
// into one file, in the order of the playlist, and returns its path.
func track(t *testing.T, dir, name string) string {
	t.Helper()
	playlist := readFile(t, dir, name+".m3u8")
	files := regexp.MustCompile(`#EXT-X-MAP:URI="([^"]+)"`).FindStringSubmatch(playlist)
	if files == nil {
		t.Fatalf("%s.m3u8 names no initialisation segment:\n%s", name, playlist)
	}
	files = files[1:]
	for line := range strings.Lines(playlist) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			files = append(files, line)
		}
	}
	var all bytes.Buffer
	for _, f := range files {
		all.WriteString(readFile(t, dir, f))
	}
	path := filepath.Join(t.TempDir(), name+".mp4")
	return writeFile(t, path, all.String())
}

// outputPictures decodes the video of a DASH or HLS result from its segments,
// on the output's own timeline.
func outputPictures(t *testing.T, dir, pixFmt string) []picture {
	t.Helper()
	return pictures(t, pixFmt, "", "-copyts", track(t, dir, "video"))
}

// checkSame compares the pictures of an output with what they should be, times
// to within tolerance seconds.
func checkSame(t *testing.T, got, want []picture, tolerance float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d frames, want %d", len(got), len(want))
	}
	wrong := 0
	for i := range min(len(got), len(want)) {
		switch {
		case math.Abs(got[i].at-want[i].at) > tolerance:
			t.Errorf("frame %d is shown at %.6f s, want %.6f s", i, got[i].at, want[i].at)
		case got[i].sum != want[i].sum:
			t.Errorf("frame %d at %.6f s is another picture", i, got[i].at)
		default:
			continue
		}
		if wrong++; wrong == 5 {
			t.Fatal("and so on")
		}
	}
}

// checkSteps checks that pictures follow each other at exactly the given rate.
func checkSteps(t *testing.T, got []picture, rate float64) {
	t.Helper()
	wrong := 0
	for i := range got {
		if want := got[0].at + float64(i)/rate; math.Abs(got[i].at-want) > 2e-6 {
			t.Errorf("frame %d is shown at %.6f s, want %.6f s", i, got[i].at, want)
			if wrong++; wrong == 5 {
				t.Fatal("and so on")
			}
		}
	}
}

// stream is what ffprobe says of a stream.
type stream struct {
	Type         string `json:"codec_type"`
	Codec        string `json:"codec_name"`
	Width        int    `json:"width"`
	Height       int    `json:"height"`
	SampleAspect string `json:"sample_aspect_ratio"`
	FrameRate    string `json:"r_frame_rate"`
	PixFmt       string `json:"pix_fmt"`
	Channels     int    `json:"channels"`
}

// probe returns a file's first stream of a type, or false.
func probe(t *testing.T, path, kind string) (stream, bool) {
	t.Helper()
	text := tool(t, "ffprobe", "-v", "error", "-show_streams", "-of", "json", path)
	var report struct {
		Streams []stream `json:"streams"`
	}
	if err := json.Unmarshal([]byte(text), &report); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(report.Streams, func(s stream) bool { return s.Type == kind })
	if i < 0 {
		return stream{}, false
	}
	return report.Streams[i], true
}

// ratio reads "24000/1001"; 0 stands for what says nothing.
func ratio(t *testing.T, s string) float64 {
	t.Helper()
	num, den, ok := strings.Cut(strings.ReplaceAll(s, ":", "/"), "/")
	if !ok || number(t, den) == 0 {
		return 0
	}
	return number(t, num) / number(t, den)
}

// pcmRate is the sample rate at which sound is compared.
const pcmRate = 8000

// sound decodes the sound of a file to mono, silent from 0 s to where it begins.
func sound(t *testing.T, input ...string) []float64 {
	t.Helper()
	args := append(slices.Clone(input[:len(input)-1]), "-i", input[len(input)-1], "-map", "0:a:0",
		"-af", "aresample=async=1:first_pts=0", "-ac", "1", "-ar", fmt.Sprint(pcmRate), "-f", "s16le", "-")
	raw := []byte(ffmpeg(t, args...))
	out := make([]float64, len(raw)/2)
	for i := range out {
		out[i] = float64(int16(binary.LittleEndian.Uint16(raw[2*i:])))
	}
	return out
}

// checkSound checks that a result's sound lies where the source's does: to 20 ms
// wherever there is something to hear, and of the same length.
func checkSound(t *testing.T, source, dir string) {
	t.Helper()
	checkSync(t, sound(t, source), sound(t, "-copyts", track(t, dir, "audio")))
}

func checkSync(t *testing.T, want, got []float64) {
	t.Helper()
	const (
		window = 2 * pcmRate
		reach  = pcmRate / 10
		limit  = pcmRate / 50
	)
	if d := float64(len(got)-len(want)) / pcmRate; math.Abs(d) > 0.06 {
		t.Errorf("sound lasts %.3f s, that of the source %.3f s", float64(len(got))/pcmRate, float64(len(want))/pcmRate)
	}
	heard := 0
	n := min(len(want), len(got))
	size := min(window, n-2*reach)
	for _, part := range []float64{0, 0.3, 0.6, 1} {
		at := reach + int(part*float64(n-size-2*reach))
		if size <= 0 || loudness(want[at:at+size]) < 30 {
			continue
		}
		heard++
		lag, alike := align(want[at:at+size], got[at-reach:at+size+reach], reach)
		if alike < 0.7 {
			t.Errorf("sound at %.2f s is another one: correlation %.2f", float64(at)/pcmRate, alike)
		} else if lag > limit || lag < -limit {
			t.Errorf("sound at %.2f s is %.1f ms late", float64(at)/pcmRate, float64(lag)*1000/pcmRate)
		}
	}
	if heard == 0 && loudness(want) >= 30 {
		t.Error("no window of the sound could be compared")
	}
}

func loudness(s []float64) float64 {
	if len(s) == 0 {
		return 0
	}
	sum := 0.0
	for _, v := range s {
		sum += v * v
	}
	return math.Sqrt(sum / float64(len(s)))
}

// align finds by how many samples want lies later in got than at reach, and how
// much alike they are there, from -1 to 1.
func align(want, got []float64, reach int) (lag int, alike float64) {
	alike = -1
	for shift := 0; shift <= 2*reach; shift++ {
		dot := 0.0
		part := got[shift : shift+len(want)]
		for i, w := range want {
			dot += w * part[i]
		}
		norm := loudness(want) * loudness(part) * float64(len(want))
		if norm > 0 && dot/norm > alike {
			lag, alike = shift-reach, dot/norm
		}
	}
	return lag, alike
}

// chroma returns the most that U and V of any pixel of a video lie from 128.
func chroma(t *testing.T, path string) float64 {
	t.Helper()
	text := ffmpeg(t, "-i", path, "-map", "0:v:0", "-vf", "signalstats,metadata=print:file=-", "-fps_mode", "passthrough", "-f", "null", "-")
	most := -1.0
	for _, m := range regexp.MustCompile(`signalstats\.[UV](?:MIN|MAX)=(\S+)`).FindAllStringSubmatch(text, -1) {
		most = max(most, math.Abs(number(t, m[1])-128))
	}
	if most < 0 {
		t.Fatalf("no statistics of %s", path)
	}
	return most
}

// clip makes a video by FFmpeg: args go from the inputs to the codecs.
func clip(t *testing.T, name string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	ffmpeg(t, append(args, path)...)
	return path
}

// testPicture and testNoise are inputs for clip: a picture in which every frame
// differs, and sound that is like itself at no other time.
func testPicture(size, rate string, seconds float64) []string {
	return []string{"-f", "lavfi", "-i", fmt.Sprintf("testsrc2=size=%s:rate=%s:duration=%g", size, rate, seconds)}
}

func testNoise(seconds float64) []string {
	return []string{"-f", "lavfi", "-i", fmt.Sprintf("anoisesrc=color=pink:seed=7:amplitude=0.5:sample_rate=48000:duration=%g", seconds)}
}

// plainClip is a clip without peculiarities: 320x180, 24 frames a second, a key
// frame every two seconds, B-frames, AAC.
func plainClip(t *testing.T, name string, seconds float64) string {
	t.Helper()
	args := append(testPicture("320x180", "24", seconds), testNoise(seconds)...)
	return clip(t, name, append(args, "-c:v", "libx264", "-preset", "veryfast", "-g", "48", "-pix_fmt", "yuv420p", "-c:a", "aac", "-shortest")...)
}

// lossless are the settings with which the output's pictures are the input's.
func lossless() []string {
	return []string{"--set", "encode.crf=0", "--set", "encode.preset=ultrafast"}
}

// fileSize returns the size of all files of a result below dir.
func treeSize(t *testing.T, dir string) int64 {
	t.Helper()
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}
