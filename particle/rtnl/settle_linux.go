package rtnl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"
)

// Settle returns when the kernel has finished with all network namespaces that
// ended before the call. It does so behind everybody's back, in rounds, and
// says nothing of it; but it does tell when a namespace that has a number here
// ends, at the beginning of the round. A namespace made, numbered and ended by
// Settle is therefore a mark: when the second mark's end is told, the round of
// the first, and of all that ended before it, is over.
func Settle(ctx context.Context) error {
	c, err := Dial()
	if err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	defer c.Close()
	events, err := Dial()
	if err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	defer events.Close()
	if err := unix.SetsockoptInt(events.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_NSID); err != nil {
		return fmt.Errorf("settle: listen to ends of namespaces: %w", err)
	}
	// The socket says now and then that nothing came, to look at ctx.
	pause := unix.NsecToTimeval(int64(20 * time.Millisecond))
	if err := unix.SetsockoptTimeval(events.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &pause); err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	for range 2 {
		id, err := c.mark(ctx)
		if err != nil {
			return fmt.Errorf("settle: %w", err)
		}
		if err := events.awaitEnd(ctx, id); err != nil {
			return fmt.Errorf("settle: %w", err)
		}
	}
	return nil
}

// mark makes a namespace, numbers it, and gives it up. The number is a large
// one by chance: the kernel counts from 0, and what it tells of others must not
// be taken for this one.
func (c *Conn) mark(ctx context.Context) (id uint32, err error) {
	var ns *Namespace
	err = onThread(func() (err error) {
		if err := enterNew(); err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		ns, err = Current()
		return err
	})
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	id = 1<<30 | rand.Uint32N(1<<30)
	var b Batch
	b.begin(unix.RTM_NEWNSID, 0, "number", "a namespace")
	b.u32(unix.AF_UNSPEC)
	b.attr32(unix.NETNSA_FD, uint32(ns.FD()))
	b.attr32(unix.NETNSA_NSID, id)
	b.end()
	return id, c.Do(ctx, &b)
}

func nsid(body []byte) (uint32, bool) {
	if len(body) < 4 {
		return 0, false
	}
	for typ, value := range attributes(body[4:]) {
		if typ == unix.NETNSA_NSID && len(value) == 4 {
			return binary.NativeEndian.Uint32(value), true
		}
	}
	return 0, false
}

// awaitEnd reads events until the namespace with that number has ended.
func (c *Conn) awaitEnd(ctx context.Context, id uint32) error {
	for {
		messages, err := c.receive()
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) {
			if err := ctx.Err(); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		for m := range messages {
			if got, ok := nsid(m.body); ok && m.typ == unix.RTM_DELNSID && got == id {
				return nil
			}
		}
	}
}
