package main

import (
	"bytes"
	"context"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/volley-run/volley/gateway/player"
	"github.com/volley-run/volley/gateway/player/playertest"
	"github.com/volley-run/volley/internal/testenv"
)

// These tests belong to those in e2e, which must not import gateway.

// filmSeconds is the length of the film.
const filmSeconds = 8

// buildAndFilm returns the volley program, and a film with sound.
func buildAndFilm(t *testing.T) (program, film string) {
	t.Helper()
	dir := t.TempDir()
	program, film = filepath.Join(dir, "volley"), filepath.Join(dir, "film.mp4")
	for _, argv := range [][]string{
		{"go", "build", "-o", program, "."},
		{
			"ffmpeg", "-v", "error", "-nostdin", "-f", "lavfi", "-i", "testsrc2=size=320x180:rate=24:duration=8", "-f", "lavfi", "-i", "sine=frequency=330:duration=8",
			"-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-g", "60", "-c:a", "aac", film,
		},
	} {
		if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", argv[0], err, out)
		}
	}
	return program, film
}

// startRun starts a run in dir. The function that it returns waits for its end.
func startRun(t *testing.T, program, film, dir string, more ...string) (wait func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, program, append([]string{"run", "grayscale", film, "-o", dir, "-q", "--chunk", "0.9s"}, more...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := cmd.Wait(); err != nil {
			t.Fatalf("volley run: %v\n%s", err, stderr.String())
		}
	}
}

// play plays the result in dir in a browser and checks that nothing is amiss.
func play(t *testing.T, dir, mode string) playertest.Report {
	t.Helper()
	handler, err := player.New(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer handler.Close()
	server := httptest.NewServer(handler)
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := playertest.Play(ctx, server.URL+"/", mode)
	if err != nil {
		t.Fatalf("%v\n%+v", err, r)
	}
	t.Logf("%+v", r)
	if r.Mode != mode || !r.Ended {
		t.Errorf("mode %q, ended %v at %v of %v", r.Mode, r.Ended, r.Position, r.Duration)
	}
	if r.Start > 500*time.Millisecond || (r.Position-filmSeconds*time.Second).Abs() > 300*time.Millisecond {
		t.Errorf("played from %v to %v, want 0 to %d s", r.Start, r.Position, filmSeconds)
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
	return r
}

func TestChromiumPlaysWhatARunLeaves(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg, testenv.Chromium, testenv.UI)
	program, film := buildAndFilm(t)
	segments, joined := filepath.Join(t.TempDir(), "segments"), filepath.Join(t.TempDir(), "joined")
	startRun(t, program, film, segments)()
	startRun(t, program, film, joined, "--format", "mp4")()
	for _, tc := range []struct{ mode, dir string }{{"dash", segments}, {"hls", segments}, {"mp4", joined}} {
		t.Run(tc.mode, func(t *testing.T) {
			if r := play(t, tc.dir, tc.mode); r.Waits != 0 || r.Stalls != 0 {
				t.Errorf("waited %d times and stalled %d times, though the run is finished", r.Waits, r.Stalls)
			}
		})
	}
}

func TestChromiumPlaysWhileTheRunGoesOn(t *testing.T) {
	testenv.Need(t, testenv.FFmpeg, testenv.Chromium, testenv.UI)
	program, film := buildAndFilm(t)
	for _, mode := range []string{"dash", "hls"} {
		t.Run(mode, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "out")
			// One worker that takes about as long for a second of the film as
			// the film itself, by waiting: the browser needs the processors.
			wait := startRun(t, program, film, dir, "--workers", "1", "--set", "encode.preset=veryfast", "--set", "filter.vf=hue=s=0,realtime")
			look := time.NewTicker(10 * time.Millisecond)
			defer look.Stop()
			end := time.After(time.Minute)
			for listed := false; !listed; {
				select {
				case <-look.C:
					_, err := os.Stat(filepath.Join(dir, "video.m3u8"))
					listed = err == nil
				case <-end:
					t.Fatal("nothing to play after a minute")
				}
			}
			if _, err := os.Stat(filepath.Join(dir, "result.json")); err == nil {
				t.Fatal("the run was over before playing began: the test shows nothing")
			}
			began := time.Now()
			// A player asks for a growing list of segments only now and then (HLS:
			// once per target duration), so that it may wait for one that is
			// there already: what counts is that it gets to the end.
			play(t, dir, mode)
			wait()
			info, err := os.Stat(filepath.Join(dir, "result.json"))
			if err != nil {
				t.Fatal(err)
			}
			beside := info.ModTime().Sub(began)
			t.Logf("the run went on for %v after the browser was started", beside)
			if beside < 3*time.Second {
				t.Errorf("the run went on for only %v after the browser was started: the test shows nothing", beside)
			}
		})
	}
}
