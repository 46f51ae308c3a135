package evpn

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

const (
	// resendAfter is how long after a session has come up its neighbour is told
	// again.
	resendAfter = time.Second
	// resendWindow is for how long a change counts as one that a session which
	// comes up may have missed: the time from when the BGP server reads its
	// table for a neighbour until it says that the session is there, and
	// resendAfter.
	resendWindow = 10 * time.Second
)

// resender makes up for what the BGP server loses. When a session comes up, it
// sends the neighbour its table and only then takes note that the session is
// there (GoBGP 4.8.0, fsmHandler.loop: the callback comes before the state). A
// route that another session changes in between is in neither: it was not in
// the table yet, and the update goes only to sessions that are known to be
// there. A route reflector with a hundred clients that start at once lost one
// or more in most runs.
//
// So the routes that have changed at about that time are sent once more: what
// is in the table by a soft reset, and what is not by the only way there is to
// make the server withdraw a route that it no longer has, which is to add and
// delete it. Meanwhile it is a route without a route target, which nobody
// imports.
type resender struct {
	mu      sync.Mutex
	changes map[string]change // by route
	timers  map[netip.Addr]*time.Timer
	closed  bool
	running sync.WaitGroup
}

// change is what has last become of a route of the table.
type change struct {
	at   time.Time
	nlri bgp.NLRI
	gone bool
}

func newResender() *resender {
	return &resender{changes: map[string]change{}, timers: map[netip.Addr]*time.Timer{}}
}

// note remembers changes of the table for a while.
func (r *resender) note(paths []*apiutil.Path) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for key, c := range r.changes {
		if now.Sub(c.at) > resendWindow {
			delete(r.changes, key)
		}
	}
	for _, p := range paths {
		if p != nil && p.Nlri != nil {
			r.changes[p.Nlri.String()] = change{now, p.Nlri, p.Withdrawal}
		}
	}
}

// established arranges for what a new session may have missed to be sent.
func (r *resender) established(s *Speaker, neighbor netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	if timer := r.timers[neighbor]; timer != nil && timer.Stop() {
		r.running.Done()
	}
	r.running.Add(1)
	r.timers[neighbor] = time.AfterFunc(resendAfter, func() {
		defer r.running.Done()
		s.resend(neighbor)
	})
}

// missed returns whether a route of the table was added or changed lately, and
// those that were withdrawn.
func (r *resender) missed() (changed bool, gone []bgp.NLRI) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for _, c := range r.changes {
		switch {
		case now.Sub(c.at) > resendWindow:
		case c.gone:
			gone = append(gone, c.nlri)
		default:
			changed = true
		}
	}
	return changed, gone
}

// close waits for what is being sent.
func (r *resender) close() {
	r.mu.Lock()
	r.closed = true
	for _, timer := range r.timers {
		if timer.Stop() {
			r.running.Done()
		}
	}
	r.mu.Unlock()
	r.running.Wait()
}

// resend tells a neighbour what it may have missed.
func (s *Speaker) resend(neighbor netip.Addr) {
	changed, gone := s.resender.missed()
	if changed {
		if err := s.bgp.ResetPeer(s.ctx, &api.ResetPeerRequest{
			Address: neighbor.String(), Soft: true, Direction: api.ResetPeerRequest_DIRECTION_OUT,
		}); err != nil && s.ctx.Err() == nil {
			// The session has ended again, and the next one brings all.
			s.log.Debug("cannot send the routes again", "neighbour", neighbor, "err", err)
		}
	}
	for _, nlri := range gone {
		if err := s.withdrawAgain(s.ctx, nlri); err != nil && s.ctx.Err() == nil {
			s.log.Warn("cannot withdraw a route again", "route", nlri.String(), "err", err)
		}
	}
}

// withdrawAgain makes the BGP server tell all neighbours that a route is gone.
func (s *Speaker) withdrawAgain(ctx context.Context, nlri bgp.NLRI) error {
	s.announcing.Lock()
	defer s.announcing.Unlock()
	if _, own := s.origin[nlri.String()]; own || ctx.Err() != nil {
		return nil // it is there again
	}
	reach, err := bgp.NewPathAttributeMpReachNLRI(bgp.RF_EVPN, []bgp.PathNLRI{{NLRI: nlri}}, s.cfg.RouterID)
	if err != nil {
		return err
	}
	p := &apiutil.Path{Family: bgp.RF_EVPN, Nlri: nlri, Age: time.Now().Unix(), Attrs: []bgp.PathAttributeInterface{
		bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP), reach,
	}}
	if _, err := s.bgp.AddPath(apiutil.AddPathRequest{Paths: []*apiutil.Path{p}}); err != nil {
		return err
	}
	return s.bgp.DeletePath(apiutil.DeletePathRequest{Paths: []*apiutil.Path{p}})
}
