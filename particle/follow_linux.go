//go:build linux

package particle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"
)

const (
	// followInterval is how soon Follow notices what others declare or remove.
	followInterval = 200 * time.Millisecond
	// followRetry is the pause after the control plane or the kernel refused.
	followRetry = time.Second
	// withdrawTime bounds how long taking back an announcement may hold up the end.
	withdrawTime = 5 * time.Second
)

// Follow keeps this node's networks and a control plane in step until ctx
// ends, and returns ctx's error then: each network that has an underlay is
// announced, and gets the peers that the control plane tells of. Networks may
// come and go meanwhile, by whichever process. What goes wrong with one network
// is logged and tried again. At the end the announcements stay, as the
// networks do; a network that was removed is withdrawn.
func (n *Node) Follow(ctx context.Context, cp ControlPlane, log *slog.Logger) error {
	followed := map[string]*following{}
	var all sync.WaitGroup
	defer all.Wait()
	tick := time.NewTicker(followInterval)
	defer tick.Stop()
	for {
		records, err := n.state.all()
		if err != nil {
			log.Error("cannot list the networks", "err", err)
		}
		if err == nil {
			seen := map[string]bool{}
			for _, r := range records {
				name := r.Spec.Name
				if !r.Spec.Underlay.Address.IsValid() || r.State != StateUp {
					continue
				}
				seen[name] = true
				m := r.Spec.Member(n.given)
				if f := followed[name]; f != nil {
					if reflect.DeepEqual(f.member, m) {
						continue
					}
					f.cancel()
				}
				f := &following{node: n, cp: cp, name: name, member: m, log: log.With("network", name)}
				var inner context.Context
				inner, f.cancel = context.WithCancel(ctx)
				followed[name] = f
				all.Go(func() { f.announce(inner) })
				all.Go(func() { f.watch(inner) })
			}
			for name, f := range followed {
				if seen[name] {
					continue
				}
				f.cancel()
				delete(followed, name)
				all.Go(f.withdraw)
			}
		}
		select {
		case <-ctx.Done():
			for _, f := range followed {
				f.cancel()
			}
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// following is one network that Follow keeps in step.
type following struct {
	node   *Node
	cp     ControlPlane
	name   string
	member Member
	log    *slog.Logger
	cancel context.CancelFunc
}

func (f *following) announce(ctx context.Context) {
	for {
		err := f.cp.Announce(ctx, f.member)
		if err == nil || ctx.Err() != nil {
			return
		}
		f.log.Warn("cannot announce the network", "err", err)
		if !pause(ctx, followRetry) {
			return
		}
	}
}

func (f *following) watch(ctx context.Context) {
	for {
		err := f.cp.Watch(ctx, f.member, func(peers []Peer) { f.apply(ctx, peers) })
		if ctx.Err() != nil {
			return
		}
		f.log.Warn("cannot watch the network", "err", err)
		if !pause(ctx, followRetry) {
			return
		}
	}
}

// apply gives the network the peers that it can use.
func (f *following) apply(ctx context.Context, peers []Peer) {
	for {
		err := f.set(ctx, peers)
		if err == nil || ctx.Err() != nil || errors.Is(err, ErrNotFound) {
			return
		}
		f.log.Warn("cannot set the network's peers", "err", err)
		if !errors.Is(err, ErrBusy) || !pause(ctx, followRetry) {
			return
		}
	}
}

func (f *following) set(ctx context.Context, peers []Peer) error {
	nw, err := f.node.Open(f.name)
	if err != nil {
		return err
	}
	spec := nw.Spec()
	usable := peers
	if spec.CheckPeers(peers) != nil {
		// A peer that somebody declared wrongly must not hold up the others.
		usable = nil
		for _, p := range peers {
			if err := spec.CheckPeers(append(slices.Clone(usable), p)); err != nil {
				f.log.Warn("a peer does not fit the network", "peer", p.Node, "underlay", p.Underlay, "err", err)
				continue
			}
			usable = append(usable, p)
		}
	}
	if err := nw.SetPeers(ctx, usable); err != nil {
		return fmt.Errorf("set peers: %w", err)
	}
	f.log.Info("peers", "count", len(usable))
	return nil
}

func (f *following) withdraw() {
	ctx, cancel := context.WithTimeout(context.Background(), withdrawTime)
	defer cancel()
	if err := f.cp.Withdraw(ctx, f.member); err != nil {
		f.log.Warn("cannot withdraw the network", "err", err)
	}
}

// pause waits, and reports whether ctx lasts.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
