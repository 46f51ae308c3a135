// Package playertest plays a result page in a headless Chromium, from start to
// end, and reports how it went. It is for tests: only they import it.
package playertest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// ErrNoBrowser means that there is no Chromium on this machine.
var ErrNoBrowser = errors.New("no chromium")

// Report is how one playback went. Times on the media's clock are in the
// field's unit; Wall and MaxGap are on the wall's.
type Report struct {
	// Mode is what played: "dash", "hls" or "mp4".
	Mode string
	// Start is the first position seen while playing.
	Start time.Duration
	// Position is the last position seen, Duration the length of what was
	// published by then.
	Position, Duration time.Duration
	// Wall is the time from the first movement to the end of playback.
	Wall time.Duration
	// Ended is true when playback came to its end, not to the context's.
	Ended bool
	// Stalls counts the times playback stopped though more was published, and
	// Waits the times it had caught up with a run that still went on.
	Stalls, Waits int
	// MaxGap is the longest time for which the position did not move.
	MaxGap time.Duration
	// MaxJump is the most that the position moved beyond the wall clock
	// between two samples: a hole that was skipped.
	MaxJump time.Duration
	// Buffered holds the ranges of media in the buffer at the end.
	Buffered [][2]time.Duration
	Segments int
	// DroppedFrames counts frames that were not drawn in time; where it is not
	// zero the machine was too busy, and Wall and MaxGap say little.
	DroppedFrames int
	Width, Height int
	// Errors holds what the page reported, what its console reported as an
	// error, uncaught exceptions, and requests that failed.
	Errors []string
	// External holds requests to anywhere but the page's own server.
	External []string
}

// sampler notes, in the page, how the position moves: samples taken from
// outside would measure the connection to the browser too.
const sampler = `(() => {
  const video = document.querySelector("video");
  const s = window.volleySample = {start: -1, began: 0, moved: 0, maxGap: 0, maxJump: 0, endedAt: 0};
  let last = -1, lastAt = 0, seenAt = 0;
  setInterval(() => {
    const now = performance.now(), at = video.currentTime;
    if (s.endedAt) return;
    if (s.start < 0) {
      if (video.paused || at <= 0) { seenAt = now; return; }
      s.start = at; s.began = now; last = at; lastAt = seenAt = now;
      return;
    }
    if (at !== last) {
      // From the sample before, not from the last movement: a jump that ends a
      // gap is not made up for by the gap.
      s.maxJump = Math.max(s.maxJump, (at - last) * 1000 - (now - seenAt) * video.playbackRate);
      last = at; lastAt = now; s.moved = now;
    }
    s.maxGap = Math.max(s.maxGap, now - lastAt);
    seenAt = now;
    if (video.ended) s.endedAt = now;
  }, 20);
})()`

// sample is what one look at the page gives.
type sample struct {
	State struct {
		Mode          string       `json:"mode"`
		CurrentTime   float64      `json:"currentTime"`
		Duration      float64      `json:"duration"`
		Stalls        int          `json:"stalls"`
		Waits         int          `json:"waits"`
		Errors        []string     `json:"errors"`
		Ended         bool         `json:"ended"`
		Buffered      [][2]float64 `json:"buffered"`
		Segments      int          `json:"segments"`
		DroppedFrames int          `json:"droppedFrames"`
		Width         int          `json:"width"`
		Height        int          `json:"height"`
	} `json:"state"`
	Sample struct {
		Start   float64 `json:"start"`
		Began   float64 `json:"began"`
		Moved   float64 `json:"moved"`
		MaxGap  float64 `json:"maxGap"`
		MaxJump float64 `json:"maxJump"`
		EndedAt float64 `json:"endedAt"`
	} `json:"sample"`
}

// Play opens the player page at pageURL and plays it, muted and at its own
// speed, by mode ("dash", "hls" or "mp4") until it ends, the page reports an
// error, or ctx ends. When ctx ends the report so far is returned with the
// context's error. It wraps ErrNoBrowser when there is no Chromium. The browser
// is closed on return.
func Play(ctx context.Context, pageURL, mode string) (Report, error) {
	address, err := url.Parse(pageURL)
	if err != nil {
		return Report{}, fmt.Errorf("play: %w", err)
	}
	query := address.Query()
	query.Set("mode", mode)
	query.Set("autoplay", "1")
	query.Set("muted", "1")
	address.RawQuery = query.Encode()

	browser, stop, err := newBrowser(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("play: %w", err)
	}
	defer stop()
	events, err := watchEvents(browser, address)
	if err != nil {
		return Report{}, fmt.Errorf("play: %w", err)
	}
	if err := chromedp.Do(browser,
		// A small window: the processor draws it.
		chromedp.EmulateViewport(480, 600),
		chromedp.Navigate(address.String()),
		chromedp.WaitReady(chromedp.CSS("video")),
		evaluate(sampler),
	); err != nil {
		return Report{}, errors.Join(fmt.Errorf("play: open page: %w", err), ctx.Err())
	}
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	var report Report
	for {
		s, err := chromedp.Run(browser, chromedp.Evaluate[sample](`({state: window.volley.state(), sample: window.volleySample})`))
		if err != nil {
			if ctx.Err() != nil {
				return report, fmt.Errorf("play: %w", ctx.Err())
			}
			return report, fmt.Errorf("play: read page: %w", err)
		}
		report = s.report()
		report.Errors = append(report.Errors, events.errors()...)
		report.External = events.external()
		if s.Sample.EndedAt > 0 || len(s.State.Errors) > 0 {
			return report, nil
		}
		select {
		case <-ctx.Done():
			return report, fmt.Errorf("play: %w", ctx.Err())
		case <-ticker.C:
		}
	}
}

// Shot says how Screenshot shows a page.
type Shot struct {
	// Width and Height are the window's, in CSS pixels.
	Width, Height int64
	Dark          bool
	// Script is run in the page before the picture is taken, if not empty; a
	// promise is waited for.
	Script string
}

// Screenshot returns a PNG picture of the whole page.
func Screenshot(ctx context.Context, pageURL string, shot Shot) ([]byte, error) {
	browser, stop, err := newBrowser(ctx)
	if err != nil {
		return nil, fmt.Errorf("screenshot: %w", err)
	}
	defer stop()
	scheme := "light"
	if shot.Dark {
		scheme = "dark"
	}
	features := []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}
	if _, err := chromedp.Call(browser, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: features}); err != nil {
		return nil, fmt.Errorf("screenshot: choose %s: %w", scheme, err)
	}
	script := shot.Script
	if script == "" {
		script = "0"
	}
	if err := chromedp.Do(browser,
		chromedp.EmulateViewport(shot.Width, shot.Height),
		chromedp.Navigate(pageURL),
		chromedp.WaitReady(chromedp.CSS("main:not([hidden])")),
		evaluate(script),
	); err != nil {
		return nil, fmt.Errorf("screenshot: %w", err)
	}
	png, err := chromedp.Run(browser, chromedp.FullScreenshot(100))
	if err != nil {
		return nil, fmt.Errorf("screenshot: %w", err)
	}
	return png, nil
}

// evaluate runs a script in the page, waits for the promise that it may give,
// and drops the value.
func evaluate(script string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Run(ctx, chromedp.Evaluate[any]("(async () => { await ("+script+"); return 0 })()", chromedp.EvalAwaitPromise))
		return err
	})
}

// newBrowser starts a browser with one page. stop ends it and waits for it.
func newBrowser(ctx context.Context) (context.Context, func(), error) {
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		return nil, nil, fmt.Errorf("%w: install the chromium package", ErrNoBrowser)
	}
	options := []chromedp.ExecAllocatorOption{chromedp.ExecPath(path)}
	for _, name := range []string{
		"headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "no-default-browser-check",
		"disable-background-networking", "disable-component-update", "disable-sync", "disable-dev-shm-usage",
		"disable-background-timer-throttling", "disable-renderer-backgrounding", "disable-backgrounding-occluded-windows", "mute-audio",
	} {
		options = append(options, chromedp.Flag(name, true))
	}
	options = append(options, chromedp.Flag("autoplay-policy", "no-user-gesture-required"))
	allocator, stopAllocator := chromedp.NewExecAllocator(ctx, options...)
	browser, stopBrowser := chromedp.NewContext(allocator)
	stop := func() {
		stopBrowser()
		stopAllocator()
	}
	if err := chromedp.Do(browser); err != nil {
		stop()
		return nil, nil, fmt.Errorf("start %s: %w", path, err)
	}
	return browser, stop, nil
}

func (s sample) report() Report {
	seconds := func(v float64) time.Duration { return time.Duration(v * float64(time.Second)) }
	millis := func(v float64) time.Duration { return time.Duration(v * float64(time.Millisecond)) }
	r := Report{
		Mode: s.State.Mode, Position: seconds(s.State.CurrentTime), Duration: seconds(s.State.Duration),
		Ended: s.Sample.EndedAt > 0, Stalls: s.State.Stalls, Waits: s.State.Waits,
		MaxGap: millis(s.Sample.MaxGap), MaxJump: millis(s.Sample.MaxJump),
		Segments: s.State.Segments, DroppedFrames: s.State.DroppedFrames,
		Width: s.State.Width, Height: s.State.Height, Errors: s.State.Errors,
	}
	if s.Sample.Start >= 0 {
		r.Start = seconds(s.Sample.Start)
		r.Wall = millis(max(s.Sample.EndedAt, s.Sample.Moved) - s.Sample.Began)
	}
	for _, b := range s.State.Buffered {
		r.Buffered = append(r.Buffered, [2]time.Duration{seconds(b[0]), seconds(b[1])})
	}
	return r
}

// eventLog collects what the browser says besides the page.
type eventLog struct {
	mu        sync.Mutex
	failures  []string
	externals []string
}

func watchEvents(browser context.Context, page *url.URL) (*eventLog, error) {
	l := &eventLog{}
	err := chromedp.Listen(browser, func(event any) {
		l.mu.Lock()
		defer l.mu.Unlock()
		switch e := event.(type) {
		case *cdpruntime.EventExceptionThrown:
			l.failures = append(l.failures, "exception: "+describe(e.ExceptionDetails))
		case *cdpruntime.EventConsoleAPICalled:
			if e.Type != cdpruntime.ConsoleAPICalledTypeError {
				return
			}
			var parts []string
			for _, a := range e.Args {
				parts = append(parts, strings.Trim(string(a.Value), `"`)+a.Description)
			}
			l.failures = append(l.failures, "console: "+strings.Join(parts, " "))
		case *network.EventResponseReceived:
			if e.Response.Status >= 400 {
				l.failures = append(l.failures, fmt.Sprintf("request: %s: HTTP %d", e.Response.URL, e.Response.Status))
			}
		case *network.EventRequestWillBeSent:
			u, err := url.Parse(e.Request.URL)
			if err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != page.Host {
				l.externals = append(l.externals, e.Request.URL)
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("watch browser: %w", err)
	}
	return l, nil
}

func describe(e *cdpruntime.ExceptionDetails) string {
	if e.Exception != nil && e.Exception.Description != "" {
		return e.Text + " " + e.Exception.Description
	}
	return e.Text
}

func (l *eventLog) errors() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.failures...)
}

func (l *eventLog) external() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.externals...)
}
