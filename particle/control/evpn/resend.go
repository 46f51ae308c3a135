package evpn

import (
	"net/netip"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

const (
	// resendAfter is how long after the last session has come up neighbours are
	// told again, and resendLatest how long after the first.
	resendAfter  = time.Second
	resendLatest = 10 * time.Second
	// resendWindow is for how long before a session comes up a change counts as
	// one that it may have missed: longer than the BGP server takes from when
	// it reads its table for a neighbour until it says that the session is there.
	resendWindow = 5 * time.Second
	// resendPause keeps the BGP server, which stands still while it reads its
	// table, from doing nothing else when many sessions have come up.
	resendPause = 10 * time.Millisecond
)

// resender makes up for what the BGP server loses. When a session comes up, it
// sends the neighbour its table and only then takes note that the session is
// there (GoBGP 4.8.0, fsmHandler.loop: the callback comes before the state). A
// route that another session changes in between is in neither: it was not in
// the table yet, and the update goes only to sessions that are known to be
// there. A route reflector with a hundred clients that start at once lost one
// or more in most runs.
//
// So a neighbour is told once more when routes have changed at about the time
// that its session came up: what is in the table by a soft reset, and what is
// not by the only way there is to make the server withdraw a route that it no
// longer has, which is to add and delete it. Meanwhile it is a route without a
// route target, which nobody imports.
type resender struct {
	mu      sync.Mutex
	changes map[string]change // by route
	pruned  time.Time
	due     map[netip.Addr]time.Time // by neighbour: when its session came up
	first   time.Time                // of due
	timer   *time.Timer              // runs while there is something due
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
	return &resender{changes: map[string]change{}, due: map[netip.Addr]time.Time{}}
}

// note remembers changes of the table for a while.
func (r *resender) note(paths []*apiutil.Path) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if now.Sub(r.pruned) > time.Second && len(r.due) == 0 {
		r.pruned = now
		for key, c := range r.changes {
			if now.Sub(c.at) > resendWindow {
				delete(r.changes, key)
			}
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
	now := time.Now()
	if len(r.due) == 0 {
		r.first = now
	}
	r.due[neighbor] = now
	if r.timer != nil {
		if now.Sub(r.first) > resendLatest-resendAfter || !r.timer.Stop() {
			return // it runs out soon, or has just done so and finds this
		}
		r.running.Done()
	}
	r.running.Add(1)
	r.timer = time.AfterFunc(resendAfter, func() {
		defer r.running.Done()
		r.resend(s)
	})
}

// close waits for what is being sent.
func (r *resender) close() {
	r.mu.Lock()
	r.closed = true
	if r.timer != nil && r.timer.Stop() {
		r.running.Done()
	}
	r.mu.Unlock()
	r.running.Wait()
}

// resend tells the neighbours that are due what they may have missed.
func (r *resender) resend(s *Speaker) {
	r.mu.Lock()
	due := r.due
	r.due, r.timer = map[netip.Addr]time.Time{}, nil
	again, gone := r.missed(due)
	r.mu.Unlock()
	for _, neighbor := range again {
		if err := s.bgp.ResetPeer(s.ctx, &api.ResetPeerRequest{
			Address: neighbor.String(), Soft: true, Direction: api.ResetPeerRequest_DIRECTION_OUT,
		}); err != nil && s.ctx.Err() == nil {
			// The session has ended again, and the next one brings all.
			s.log.Debug("cannot send the routes again", "neighbour", neighbor, "err", err)
		}
		if pause(s.ctx, s.ctx, resendPause) != nil {
			return
		}
	}
	for _, nlri := range gone {
		if err := s.withdrawAgain(nlri); err != nil && s.ctx.Err() == nil {
			s.log.Warn("cannot withdraw a route again", "route", nlri.String(), "err", err)
		}
	}
}

// missed returns the neighbours that may have missed a route of the table, and
// routes whose withdrawal one may have missed.
func (r *resender) missed(due map[netip.Addr]time.Time) (again []netip.Addr, gone []bgp.NLRI) {
	var first, lastChange time.Time
	for _, c := range r.changes {
		if !c.gone && c.at.After(lastChange) {
			lastChange = c.at
		}
	}
	for neighbor, up := range due {
		if first.IsZero() || up.Before(first) {
			first = up
		}
		if lastChange.After(up.Add(-resendWindow)) {
			again = append(again, neighbor)
		}
	}
	for _, c := range r.changes {
		if c.gone && c.at.After(first.Add(-resendWindow)) {
			gone = append(gone, c.nlri)
		}
	}
	return again, gone
}

// withdrawAgain makes the BGP server tell all neighbours that a route is gone.
func (s *Speaker) withdrawAgain(nlri bgp.NLRI) error {
	s.announcing.Lock()
	defer s.announcing.Unlock()
	if _, own := s.origin[nlri.String()]; own || s.ctx.Err() != nil {
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
