package stage

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sprocket"
)

// ffmpegRun is one FFmpeg process whose graph may hold the two probes "src"
// and "out": showinfo filters that tell the time of every frame that passes.
type ffmpegRun struct {
	program string
	args    []string
	// secrets are strings to keep out of messages.
	secrets []string
	// stdout, when not nil, consumes the process's output.
	stdout func(io.Reader) error
	// frame is called for every frame at the probe "out".
	frame func(n int)
}

// ffmpegLog is what the process said.
type ffmpegLog struct {
	// sourceFrames counts the frames at the probe "src", per port.
	sourceFrames map[int]int
	// pts are the times of the frames at the probe "out", in ticks of the
	// graph's time base there.
	pts []int64
	// pixels describes the frames at the probe "out".
	pixels sprocket.Pixels
	tail   []string
}

const tailLines = 12

// reconnect returns what makes FFmpeg try again when a server is busy or hangs
// up.
func reconnect() []string {
	return []string{
		"-reconnect", "1", "-reconnect_streamed", "1", "-reconnect_delay_max", "5",
		"-reconnect_on_network_error", "1", "-reconnect_on_http_error", "5xx",
	}
}

// run starts FFmpeg and waits for it. An error is a *Failure.
func (r ffmpegRun) run(ctx context.Context) (*ffmpegLog, error) {
	base := []string{"-nostdin", "-hide_banner", "-nostats", "-v", "info", "-y"}
	cmd := exec.CommandContext(ctx, r.program, append(base, r.args...)...)
	cmd.Env = append(os.Environ(), "AV_LOG_FORCE_NOCOLOR=1")
	release := sys.DieWithParent(cmd)
	defer release()
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, &Failure{Kind: FailureTransient, Err: fmt.Errorf("start ffmpeg: %w", err)}
	}
	var stdout io.ReadCloser
	if r.stdout != nil {
		if stdout, err = cmd.StdoutPipe(); err != nil {
			return nil, &Failure{Kind: FailureTransient, Err: fmt.Errorf("start ffmpeg: %w", err)}
		}
	}
	if err := cmd.Start(); err != nil {
		return nil, &Failure{Kind: FailureTransient, Err: fmt.Errorf("start ffmpeg (%s): %w; install ffmpeg 5.1 or later", r.program, err)}
	}
	consumed := make(chan error, 1)
	if stdout != nil {
		go func() {
			err := r.stdout(stdout)
			// Let the process end even if its output is of no use any more.
			_, _ = io.Copy(io.Discard, stdout)
			consumed <- err
		}()
	} else {
		consumed <- nil
	}
	log := &ffmpegLog{sourceFrames: map[int]int{}}
	log.read(stderr, r.frame)
	outErr := <-consumed
	waitErr := cmd.Wait()
	for i, line := range log.tail {
		log.tail[i] = r.redact(line)
	}
	switch {
	case ctx.Err() != nil:
		return log, &Failure{Kind: FailureTransient, Err: ctx.Err()}
	case waitErr != nil:
		return log, log.failure(waitErr)
	case outErr != nil:
		return log, &Failure{Kind: KindOf(outErr), Err: outErr, LogTail: log.tail}
	}
	return log, nil
}

func (r ffmpegRun) redact(line string) string {
	for _, s := range r.secrets {
		line = strings.ReplaceAll(line, s, "(input)")
	}
	return line
}

// read follows FFmpeg's messages to their end.
func (l *ffmpegLog) read(r io.Reader, frame func(int)) {
	var infoLine = regexp.MustCompile(`^\[showinfo@(src(\d+)|out) @ [^\]]*\] n: *\d+ pts: *(-?\d+) .* fmt:(\S+) .*?sar:(\d+)/(\d+) s:(\d+)x(\d+) `)
	var colorLine = regexp.MustCompile(`^\[showinfo@out @ [^\]]*\] color_range:(\S+) color_space:(\S+) color_primaries:(\S+) color_trc:(\S+)`)
	in := bufio.NewReader(r)
	header := true
	for {
		line, err := in.ReadString('\n')
		line = strings.TrimRight(line, "\r\n")
		if strings.HasPrefix(line, "[showinfo@") {
			if m := infoLine.FindStringSubmatch(line); m != nil {
				l.sawFrame(m, frame)
			} else if m := colorLine.FindStringSubmatch(line); m != nil && l.pixels.Range == "" {
				l.pixels.Range, l.pixels.Space, l.pixels.Primaries, l.pixels.Transfer = m[1], m[2], m[3], m[4]
			}
		} else if line != "" {
			// The description of inputs and outputs is no news.
			header = strings.HasPrefix(line, " ") && header || strings.HasPrefix(line, "Input #") || strings.HasPrefix(line, "Output #") || strings.HasPrefix(line, "Stream mapping")
			if !header && !strings.HasPrefix(line, "frame=") && !strings.HasPrefix(line, "size=") && !strings.HasPrefix(line, "video:") && !strings.HasPrefix(line, "[libx26") {
				l.tail = append(l.tail, line)
				if len(l.tail) > tailLines {
					l.tail = l.tail[1:]
				}
			}
		}
		if err != nil {
			return
		}
	}
}

func (l *ffmpegLog) sawFrame(m []string, frame func(int)) {
	if m[1] != "out" {
		port, _ := strconv.Atoi(m[2])
		l.sourceFrames[port]++
		return
	}
	pts, err := strconv.ParseInt(m[3], 10, 64)
	if err != nil {
		return
	}
	l.pts = append(l.pts, pts)
	if len(l.pts) == 1 {
		sar, _ := sprocket.ParseRational(m[5] + "/" + m[6])
		width, _ := strconv.Atoi(m[7])
		height, _ := strconv.Atoi(m[8])
		l.pixels = sprocket.Pixels{Format: m[4], SampleAspect: sar, Width: width, Height: height}
	}
	if frame != nil {
		frame(len(l.pts))
	}
}

// failure names the cause of a failed run from what FFmpeg said last.
func (l *ffmpegLog) failure(waitErr error) *Failure {
	f := &Failure{Kind: FailureTransient, LogTail: l.tail}
	text := strings.Join(l.tail, "\n")
	var exit *exec.ExitError
	signalled := errors.As(waitErr, &exit) && !exit.Exited()
	switch {
	case strings.Contains(text, "No space left on device"):
		f.Kind = FailureNoSpace
		f.Err = errors.New("no space left on the device that holds the output")
		return f
	case signalled:
		f.Err = fmt.Errorf("ffmpeg: %w", waitErr)
	case containsAny(text, "HTTP error ", "Server returned ", "Connection refused", "Connection reset", "Connection timed out", "Network is unreachable", "Failed to resolve hostname"):
		f.Err = fmt.Errorf("read the input over the network: %s", l.cause())
	case containsAny(text, "No such filter", "Error initializing filter", "Error reinitializing filters", "Option not found", "Unknown encoder", "Error parsing", "Error initializing complex filters", "Unable to parse option", "Invalid argument", "Undefined constant", "Failed to configure", "Error setting option"):
		f.Kind = FailureConfig
		f.Err = fmt.Errorf("ffmpeg does not accept the stage's settings: %s", l.cause())
	case containsAny(text, "Invalid data found", "moov atom not found", "Error while decoding", "error while decoding", "concealing ", "Error splitting", "corrupt", "could not find codec parameters"):
		f.Kind = FailureInput
		f.Err = fmt.Errorf("the video is damaged: %s", l.cause())
	default:
		f.Err = fmt.Errorf("ffmpeg: %w: %s", waitErr, l.cause())
	}
	return f
}

// missesReferences reports whether all that FFmpeg complained about is that
// frames refer to ones from before the place where decoding started.
func (l *ffmpegLog) missesReferences() bool {
	if l == nil {
		return false
	}
	found := false
	for _, line := range l.tail {
		switch {
		case containsAny(line, "mmco: unref short failure", "co located POCs unavailable", "reference picture missing", "Missing reference picture", "Could not find ref with POC"):
			found = true
		case !containsAny(line, "Conversion failed", "Last message repeated"):
			return false
		}
	}
	return found
}

// speaker is what FFmpeg puts before a line: the part of it that speaks, with its
// address in memory.
var speaker = regexp.MustCompile(`^(\[[^\]]* @ 0x[0-9a-f]+\] )+`)

// cause picks the line that says most.
func (l *ffmpegLog) cause() string {
	vague := []string{"Conversion failed", "Last message repeated", "Error initializing complex filters", "Error while filtering", "Error reinitializing filters", "Failed to inject", "Error initializing output stream", "maybe incorrect parameters"}
	// What an error number says, alone on a line, repeats the line before it.
	numbers := []string{"Invalid argument", "Option not found", "Operation not permitted", "Invalid data found when processing input"}
	for i := len(l.tail) - 1; i >= 0; i-- {
		line := strings.TrimSpace(l.tail[i])
		if !containsAny(line, vague...) && !slices.Contains(numbers, line) {
			return speaker.ReplaceAllString(line, "")
		}
	}
	if len(l.tail) > 0 {
		return l.tail[len(l.tail)-1]
	}
	return "it said nothing"
}

func containsAny(s string, parts ...string) bool {
	for _, p := range parts {
		if strings.Contains(s, p) {
			return true
		}
	}
	return false
}
