package player

import (
	"bytes"
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volley-run/volley/gateway/player/playertest"
	"github.com/volley-run/volley/internal/testenv"
)

const (
	clipSeconds    = 8
	segmentSeconds = 2
	segments       = clipSeconds / segmentSeconds
)

// makeResult makes a result directory by ffmpeg: DASH and HLS over the same
// segments, and an MP4.
func makeResult(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	ffmpeg := func(args ...string) {
		t.Helper()
		cmd := exec.Command("ffmpeg", append([]string{"-v", "error", "-nostdin", "-y"}, args...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("ffmpeg: %v\n%s", err, out)
		}
	}
	duration := fmt.Sprint(clipSeconds)
	ffmpeg("-f", "lavfi", "-i", "testsrc2=size=320x180:rate=24:duration="+duration,
		"-f", "lavfi", "-i", "sine=frequency=330:sample_rate=48000:duration="+duration,
		"-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-g", "48", "-keyint_min", "48", "-sc_threshold", "0", "-bf", "0",
		"-c:a", "aac", "-b:a", "96k", "-movflags", "+faststart", "output.mp4")
	ffmpeg("-i", "output.mp4", "-c", "copy", "-f", "dash", "-seg_duration", fmt.Sprint(segmentSeconds),
		"-use_template", "1", "-use_timeline", "1", "-hls_playlist", "1", "-hls_master_name", "playlist.m3u8",
		"-init_seg_name", "init-$RepresentationID$.mp4", "-media_seg_name", "$RepresentationID$-$Number%05d$.m4s", "manifest.mpd")
	return dir
}

func TestChromiumPlaysAResultWithoutAStall(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg, testenv.Chromium, testenv.UI)
	h := serve(t, makeResult(t))
	server := httptest.NewServer(h)
	defer server.Close()
	for _, mode := range []string{"dash", "hls", "mp4"} {
		t.Run(mode, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			r, err := playertest.Play(ctx, server.URL+"/", mode)
			if err != nil {
				t.Fatalf("%v\n%+v", err, r)
			}
			t.Logf("%+v", r)
			checkWhole(t, r, mode)
			if r.Stalls != 0 {
				t.Errorf("stalled %d times", r.Stalls)
			}
			if r.Waits != 0 {
				t.Errorf("waited %d times for a finished run", r.Waits)
			}
			// The position follows the wall clock through every segment join,
			// unless the machine is too busy to draw every frame.
			slow := r.Wall - (r.Position - r.Start)
			if slow < -500*time.Millisecond {
				t.Errorf("%v of video took only %v", r.Position-r.Start, r.Wall)
			}
			if r.DroppedFrames > 0 {
				t.Logf("the machine dropped %d frames: how long playback took says nothing", r.DroppedFrames)
				return
			}
			if slow > 1500*time.Millisecond {
				t.Errorf("%v of video took %v", r.Position-r.Start, r.Wall)
			}
			if r.MaxGap > time.Second {
				t.Errorf("the picture stood for %v", r.MaxGap)
			}
		})
	}
}

// checkWhole checks that playback went from the start to the end of the clip.
func checkWhole(t *testing.T, r playertest.Report, mode string) {
	t.Helper()
	if r.Mode != mode || !r.Ended {
		t.Errorf("mode %q, ended %v at %v of %v", r.Mode, r.Ended, r.Position, r.Duration)
	}
	if r.Start > 500*time.Millisecond {
		t.Errorf("started at %v, not at the beginning", r.Start)
	}
	if d := (r.Position - clipSeconds*time.Second).Abs(); d > 300*time.Millisecond {
		t.Errorf("ended at %v, want %d s", r.Position, clipSeconds)
	}
	if len(r.Errors) != 0 || len(r.External) != 0 {
		t.Errorf("errors %q, requests elsewhere %q", r.Errors, r.External)
	}
	if r.MaxJump > 300*time.Millisecond {
		t.Errorf("skipped %v", r.MaxJump)
	}
	if r.Width != 320 || r.Height != 180 {
		t.Errorf("picture %d x %d", r.Width, r.Height)
	}
	if mode != "mp4" && r.Segments < 2*segments {
		t.Errorf("loaded %d segments, want %d", r.Segments, 2*segments)
	}
}

// publish writes the manifests of a run that has finished the first n segments.
// Each file is replaced whole, as a run does it.
func publish(t *testing.T, from, to string, n int, started time.Time) {
	t.Helper()
	replace := func(name string, content []byte) {
		t.Helper()
		temporary := filepath.Join(to, ".new")
		if err := os.WriteFile(temporary, content, 0o644); err != nil {
			t.Error(err)
			return
		}
		if err := os.Rename(temporary, filepath.Join(to, name)); err != nil {
			t.Error(err)
		}
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Error(err)
		return
	}
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			t.Error(err)
			return
		}
		name := e.Name()
		var number int
		_, numberErr := fmt.Sscanf(name, "0-%d.m4s", &number)
		if numberErr != nil {
			_, numberErr = fmt.Sscanf(name, "1-%d.m4s", &number)
		}
		switch {
		case name == "output.mp4", name == "manifest.mpd", numberErr == nil && number > n:
		case strings.HasPrefix(name, "media_"):
			replace(name, cutPlaylist(content, n))
		default:
			replace(name, content)
		}
	}
	replace("manifest.mpd", growingManifest(n, started))
}

func cutPlaylist(content []byte, n int) []byte {
	if n >= segments {
		return content
	}
	var out bytes.Buffer
	left := n
	for line := range strings.Lines(string(content)) {
		if left == 0 && strings.HasPrefix(line, "#EXTINF") {
			break
		}
		if strings.HasPrefix(line, "#EXT-X-PLAYLIST-TYPE") {
			continue
		}
		out.WriteString(line)
		if strings.HasPrefix(line, "#EXTM3U") {
			out.WriteString("#EXT-X-PLAYLIST-TYPE:EVENT\n")
		}
		if !strings.HasPrefix(line, "#") {
			left--
		}
	}
	return out.Bytes()
}

func growingManifest(n int, started time.Time) []byte {
	kind := fmt.Sprintf(`type="dynamic" minimumUpdatePeriod="PT1S" availabilityStartTime=%q publishTime=%q`,
		started.UTC().Format(time.RFC3339), time.Now().UTC().Format(time.RFC3339))
	if n >= segments {
		kind = fmt.Sprintf(`type="static" mediaPresentationDuration="PT%dS"`, clipSeconds)
	}
	set := func(id int, content, attributes string) string {
		return fmt.Sprintf(`<AdaptationSet id="%[1]d" contentType="%[2]s" mimeType="%[2]s/mp4" segmentAlignment="true"><Representation id="%[1]d" bandwidth="200000" %[3]s>`+
			`<SegmentTemplate timescale="1" initialization="init-$RepresentationID$.mp4" media="$RepresentationID$-$Number%%05d$.m4s" startNumber="1">`+
			`<SegmentTimeline><S t="0" d="%[4]d" r="%[5]d"/></SegmentTimeline></SegmentTemplate></Representation></AdaptationSet>`,
			id, content, attributes, segmentSeconds, n-1)
	}
	return []byte(`<?xml version="1.0" encoding="utf-8"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-live:2011" minBufferTime="PT2S" ` +
		kind + `><Period id="0" start="PT0S">` +
		set(0, "video", `codecs="avc1.42C00D" width="320" height="180"`) +
		set(1, "audio", `codecs="mp4a.40.2" audioSamplingRate="48000"`) + `</Period></MPD>`)
}

func TestChromiumFollowsARunThatIsStillComputing(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg, testenv.Chromium, testenv.UI)
	whole := makeResult(t)
	tests := []struct {
		name string
		mode string
		// first segments are there at the start, then one every interval.
		first    int
		interval time.Duration
		// age is how long ago the run began: the clock of its manifest.
		age        time.Duration
		mustWait   bool
		mayNotWait bool
	}{
		{"dash, faster than it plays", "dash", 2, 700 * time.Millisecond, 0, false, true},
		{"dash, slower than it plays", "dash", 1, 4 * time.Second, time.Hour, true, false},
		{"hls, faster than it plays", "hls", 2, 700 * time.Millisecond, 0, false, true},
		{"hls, slower than it plays", "hls", 1, 4 * time.Second, time.Hour, true, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			started := time.Now().Add(-test.age)
			dir := t.TempDir()
			publish(t, whole, dir, test.first, started)
			server := httptest.NewServer(serve(t, dir))
			defer server.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()

			// The run: it must be over before the directory goes.
			done := make(chan struct{})
			go func() {
				defer close(done)
				ticker := time.NewTicker(test.interval)
				defer ticker.Stop()
				for n := test.first + 1; n <= segments; n++ {
					select {
					case <-ctx.Done():
						return
					case <-ticker.C:
						publish(t, whole, dir, n, started)
					}
				}
			}()
			r, err := playertest.Play(ctx, server.URL+"/", test.mode)
			cancel()
			<-done
			if err != nil {
				t.Fatalf("%v\n%+v", err, r)
			}
			t.Logf("%+v", r)
			checkWhole(t, r, test.mode)
			// A machine so busy that it plays slower than the run computes does
			// not catch up with it.
			if test.mustWait && r.Waits == 0 && r.Wall < 15*time.Second && r.DroppedFrames == 0 {
				t.Error("never caught up with a run that is slower than the video")
			}
			// Where the video must wait for the run, a wait can look like a stall:
			// the next segment may be listed before it has arrived.
			if test.mayNotWait && (r.Waits > 0 || r.Stalls > 0) {
				t.Errorf("waited %d times and stalled %d times for a run that is faster than the video", r.Waits, r.Stalls)
			}
		})
	}
}
