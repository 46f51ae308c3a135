package media

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/volley-run/volley/store"
)

// join writes all segments into one MP4 without encoding again. The segments
// stream through, so that memory stays flat.
func (p *Publisher) join(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(p.cfg.TempDir, "join-")
	if err != nil {
		return fmt.Errorf("join segments: %w", err)
	}
	defer func() {
		if rmErr := os.RemoveAll(dir); err == nil && rmErr != nil {
			err = fmt.Errorf("join segments: %w", rmErr)
		}
	}()
	out := filepath.Join(dir, JoinedMP4)
	args := []string{"-nostdin", "-hide_banner", "-v", "error", "-y", "-copyts", "-f", "mp4", "-i", "pipe:0"}
	if !p.show.Audio.Empty() {
		audio := filepath.Join(dir, "audio.mp4")
		if err := p.collect(ctx, audio, p.show.Audio); err != nil {
			return err
		}
		args = append(args, "-copyts", "-f", "mp4", "-i", audio)
	}
	args = append(args, "-map", "0:v:0")
	if !p.show.Audio.Empty() {
		args = append(args, "-map", "1:a:0")
	}
	args = append(args, "-c", "copy",
		"-video_track_timescale", fmt.Sprint(p.cfg.TimeBase.Den), "-movflags", "+faststart", "-f", "mp4", out)
	cmd := exec.CommandContext(ctx, p.cfg.FFmpeg, args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("join segments: %w", err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("join segments: start %s: %w", p.cfg.FFmpeg, err)
	}
	copyErr := p.copyRendition(ctx, stdin, p.show.Video)
	closeErr := stdin.Close()
	if err := cmd.Wait(); err != nil {
		if strings.Contains(stderr.String(), "No space left on device") {
			err = fmt.Errorf("%w: %w", store.ErrNoSpace, err)
		}
		return fmt.Errorf("join segments: ffmpeg: %w: %s", err, lastLine(stderr.String()))
	}
	if err := errors.Join(copyErr, closeErr); err != nil {
		return fmt.Errorf("join segments: %w", err)
	}
	if _, err := p.cfg.Store.PutFile(ctx, path.Join(p.cfg.Prefix, JoinedMP4), out); err != nil {
		return fmt.Errorf("join segments: %w", err)
	}
	return p.dropSegments(ctx)
}

func (p *Publisher) collect(ctx context.Context, file string, r Rendition) error {
	f, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("join segments: %w", err)
	}
	err = p.copyRendition(ctx, f, r)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if errors.Is(err, syscall.ENOSPC) {
		err = fmt.Errorf("%w: %w", store.ErrNoSpace, err)
	}
	if err != nil {
		return fmt.Errorf("join segments: %w", err)
	}
	return nil
}

func (p *Publisher) copyRendition(ctx context.Context, w io.Writer, r Rendition) error {
	names := []string{r.Init}
	for _, s := range r.Segments {
		names = append(names, r.name(s))
	}
	for _, name := range names {
		in, err := p.cfg.Store.Get(ctx, p.cfg.Prefix+name, 0, -1)
		if err != nil {
			return err
		}
		_, err = io.Copy(w, in)
		if closeErr := in.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dropSegments removes what the joined file now holds.
func (p *Publisher) dropSegments(ctx context.Context) error {
	for _, r := range []Rendition{p.show.Video, p.show.Audio} {
		if r.Empty() {
			continue
		}
		for _, s := range r.Segments {
			if err := p.cfg.Store.Delete(ctx, p.cfg.Prefix+r.name(s)); err != nil {
				return fmt.Errorf("remove segments: %w", err)
			}
		}
		if err := p.cfg.Store.Delete(ctx, p.cfg.Prefix+r.Init); err != nil {
			return fmt.Errorf("remove segments: %w", err)
		}
	}
	return nil
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
