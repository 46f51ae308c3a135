package firecracker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/volley-run/volley/faasnap/vmm"
)

const (
	// statsFresh is how long it takes until what the guest says of its memory is
	// not from before it was asked to tell every second.
	statsFresh = 1500 * time.Millisecond
	// statsMissing is how long a guest may take to say it at all.
	statsMissing = 5 * time.Second
	// balloonPoll is how often the balloon is looked at, balloonStall how long
	// it may not change before that is all that the guest does.
	balloonPoll  = 20 * time.Millisecond
	balloonStall = 2 * time.Second
	// deflateTime is how long giving memory back may take after an error.
	deflateTime = 10 * time.Second
)

// Reclaim implements vmm.VM by a balloon in the guest, which needs the driver
// for it; the error wraps vmm.ErrUnsupported if it has none. A guest that gives
// less than it has free is no error.
func (v *VM) Reclaim(ctx context.Context, keepBytes int64) error {
	if err := v.reclaim(ctx, keepBytes); err != nil {
		return fmt.Errorf("reclaim memory: %w", v.process.because(err))
	}
	return nil
}

func (v *VM) reclaim(ctx context.Context, keepBytes int64) (err error) {
	if keepBytes < 0 {
		return fmt.Errorf("keep %d bytes: want 0 or more", keepBytes)
	}
	if err := v.api.patch(ctx, "/balloon/statistics", balloonPolling{1}); err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deflateTime)
		defer cancel()
		if err != nil {
			err = errors.Join(err, v.api.patch(ctx, "/balloon", balloonSize{0}))
		}
		err = errors.Join(err, v.api.patch(ctx, "/balloon/statistics", balloonPolling{statsSeconds}))
	}()
	free, err := v.free(ctx)
	if err != nil {
		return err
	}
	size := (free - keepBytes) / mib
	if size <= 0 {
		return nil
	}
	for _, size := range []int64{size, 0} {
		if err := v.api.patch(ctx, "/balloon", balloonSize{size}); err != nil {
			return err
		}
		got, err := v.settle(ctx, size)
		if err != nil {
			return err
		}
		if size == 0 && got > 0 {
			return fmt.Errorf("the guest does not take back %d MiB of memory", got)
		}
	}
	return nil
}

// free returns how much memory the guest has free.
func (v *VM) free(ctx context.Context) (int64, error) {
	if err := v.wait(ctx, statsFresh); err != nil {
		return 0, err
	}
	for end := time.Now().Add(statsMissing); ; {
		var s balloonStats
		if err := v.api.get(ctx, "/balloon/statistics", &s); err != nil {
			return 0, err
		}
		if s.Free != nil {
			return *s.Free, nil
		}
		if time.Now().After(end) {
			return 0, fmt.Errorf("the guest says nothing of its memory, and may have no balloon driver: %w", vmm.ErrUnsupported)
		}
		if err := v.wait(ctx, balloonPoll); err != nil {
			return 0, err
		}
	}
}

// settle waits until the balloon has the size in MiB, or does not change any
// more, and returns its size.
func (v *VM) settle(ctx context.Context, size int64) (int64, error) {
	last, end := int64(-1), time.Time{}
	for {
		var s balloonStats
		if err := v.api.get(ctx, "/balloon/statistics", &s); err != nil {
			return 0, err
		}
		if s.ActualMiB != last {
			last, end = s.ActualMiB, time.Now().Add(balloonStall)
		}
		if last == size || time.Now().After(end) {
			return last, nil
		}
		if err := v.wait(ctx, balloonPoll); err != nil {
			return 0, err
		}
	}
}

func (v *VM) wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-v.process.done:
		return errors.New("firecracker has ended")
	case <-time.After(d):
		return nil
	}
}
