// Package kvstore is the control plane of networks over a key-value store: a
// bucket of NATS JetStream, in which each node keeps what it serves, and which
// all watch.
//
// An announcement is repeated every quarter of its lifetime (Config.TTL, a
// minute unless set). A node that died, or that is cut off from NATS, is
// forgotten by the others after that. While a node itself is cut off it keeps
// the peers that it last knew, so that a restart of NATS tears nothing down.
package kvstore

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/volley-run/volley/particle"
)

// Bucket is the name of the bucket unless Config has another.
const Bucket = "volley-net"

// DefaultTTL is how long an announcement is believed without being repeated.
const DefaultTTL = time.Minute

// version is that of the values' form.
const version = 1

// Config says where the store is.
type Config struct {
	// Conn is a connection to NATS with JetStream, which stays the caller's.
	Conn *nats.Conn
	// Bucket is made if it is not there. Empty: Bucket.
	Bucket string
	// TTL is an announcement's lifetime, the same on all nodes. 0: DefaultTTL.
	TTL time.Duration
	// Replicas is on how many servers a bucket that has to be made is kept. 0: 1.
	Replicas int
}

// Store is a particle.ControlPlane and a particle.PrefixClaimer. Its methods
// may be called concurrently.
type Store struct {
	cfg Config
	kv  jetstream.KeyValue
	// session tells this Store from others that use a node's name.
	session string
	ctx     context.Context
	cancel  context.CancelFunc
	beats   sync.WaitGroup

	mu    sync.Mutex
	spoke map[string]context.CancelFunc // by key: ends the repetition
}

var (
	_ particle.ControlPlane  = (*Store)(nil)
	_ particle.PrefixClaimer = (*Store)(nil)
)

// announcement is the value of a member's key.
type announcement struct {
	Version int           `json:"version"`
	Network string        `json:"network"`
	Session string        `json:"session"`
	Self    particle.Peer `json:"self"`
}

// Open opens the store. The caller closes it.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	cfg.Bucket = cmp.Or(cfg.Bucket, Bucket)
	cfg.TTL = cmp.Or(cfg.TTL, DefaultTTL)
	js, err := jetstream.New(cfg.Conn)
	if err != nil {
		return nil, fmt.Errorf("open key-value store: %w", err)
	}
	kv, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: cfg.Bucket, Description: "Members of networks", History: 1, Storage: jetstream.FileStorage, Replicas: max(cfg.Replicas, 1),
	})
	if err != nil {
		return nil, fmt.Errorf("open key-value store: bucket %s: %w", cfg.Bucket, err)
	}
	s := &Store{cfg: cfg, kv: kv, session: rand.Text(), spoke: map[string]context.CancelFunc{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Close ends watches and repetitions. What was announced is forgotten by the
// others after its lifetime.
func (s *Store) Close() error {
	s.cancel()
	s.beats.Wait()
	return nil
}

// network begins the keys of a network. Names may hold what keys may not.
func network(m particle.Member) string {
	sum := sha256.Sum256([]byte(m.Network))
	return hex.EncodeToString(sum[:12]) + "." + strconv.FormatUint(uint64(m.VNI), 10)
}

func memberKey(m particle.Member) string {
	return "member." + network(m) + "." + hex.EncodeToString([]byte(m.Self.Node))
}

func check(m particle.Member) error {
	switch {
	case m.Network == "":
		return errors.New("the network has no name")
	case m.VNI == 0 || m.VNI >= 1<<24:
		return fmt.Errorf("VNI %d is not from 1 to 16777215", m.VNI)
	case m.Self.Node == "":
		return errors.New("the node has no name")
	}
	return nil
}

func checkPeer(p particle.Peer) error {
	if !p.Underlay.IsValid() {
		return errors.New("the node has no underlay address")
	}
	if len(p.MAC) != 0 && len(p.MAC) != 6 {
		return fmt.Errorf("%s is no Ethernet address", p.MAC)
	}
	for _, h := range p.Hosts {
		if !h.Address.IsValid() || len(h.MAC) != 6 {
			return errors.New("a host lacks its address or its Ethernet address")
		}
	}
	return nil
}

// Announce implements particle.ControlPlane. It fails with particle.ErrConflict,
// wrapped, while another node of that name with another underlay address lives.
func (s *Store) Announce(ctx context.Context, m particle.Member) error {
	if err := s.announce(ctx, m); err != nil {
		return fmt.Errorf("announce %s on %s: %w", m.Self.Node, m.Network, err)
	}
	return nil
}

func (s *Store) announce(ctx context.Context, m particle.Member) error {
	if err := errors.Join(check(m), checkPeer(m.Self), s.ctx.Err()); err != nil {
		return err
	}
	value, err := json.Marshal(announcement{version, m.Network, s.session, m.Self})
	if err != nil {
		return err
	}
	key := memberKey(m)
	if e, err := s.kv.Get(ctx, key); err == nil {
		var other announcement
		if json.Unmarshal(e.Value(), &other) == nil && other.Session != s.session && other.Self.Underlay != m.Self.Underlay && time.Since(e.Created()) < s.cfg.TTL {
			return fmt.Errorf("%w: the node at %s has that name", particle.ErrConflict, other.Self.Underlay)
		}
	} else if !errors.Is(err, jetstream.ErrKeyNotFound) {
		return err
	}
	if _, err := s.kv.Put(ctx, key, value); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	if stop := s.spoke[key]; stop != nil {
		stop()
	}
	beating, stop := context.WithCancel(s.ctx)
	s.spoke[key] = stop
	s.beats.Go(func() { s.repeat(beating, key, value) })
	return nil
}

// repeat keeps an announcement alive. That NATS is away for a while is no
// reason to give up.
func (s *Store) repeat(ctx context.Context, key string, value []byte) {
	tick := time.NewTicker(s.cfg.TTL / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		put, cancel := context.WithTimeout(ctx, s.cfg.TTL/4)
		_, _ = s.kv.Put(put, key, value)
		cancel()
	}
}

// Withdraw implements particle.ControlPlane.
func (s *Store) Withdraw(ctx context.Context, m particle.Member) error {
	if err := errors.Join(check(m), s.ctx.Err()); err != nil {
		return fmt.Errorf("withdraw: %w", err)
	}
	key := memberKey(m)
	s.mu.Lock()
	if stop := s.spoke[key]; stop != nil {
		stop()
		delete(s.spoke, key)
	}
	s.mu.Unlock()
	if err := s.kv.Delete(ctx, key); err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
		return fmt.Errorf("withdraw %s from %s: %w", m.Self.Node, m.Network, err)
	}
	return nil
}

// Watch implements particle.ControlPlane.
func (s *Store) Watch(ctx context.Context, m particle.Member, changed func([]particle.Peer)) error {
	if err := errors.Join(check(m), s.ctx.Err(), ctx.Err()); err != nil {
		return fmt.Errorf("watch %s: %w", m.Network, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(errors.New("the store was closed")) })()
	if err := s.watch(ctx, m, changed); err != nil {
		return fmt.Errorf("watch %s: %w", m.Network, err)
	}
	return nil
}

// heard is a member, and when it was last heard of.
type heard struct {
	peer     particle.Peer
	at       time.Time
	revision uint64
}

func (s *Store) watch(ctx context.Context, m particle.Member, changed func([]particle.Peer)) error {
	w, err := s.kv.Watch(ctx, "member."+network(m)+".*")
	if err != nil {
		return err
	}
	defer func() { _ = w.Stop() }()
	own := memberKey(m)
	members := map[string]heard{}
	var last []particle.Peer
	known, dirty := false, true
	since := time.Now() // without interruption of the connection
	tick := time.NewTicker(s.cfg.TTL / 4)
	defer tick.Stop()
	take := func(e jetstream.KeyValueEntry) {
		switch {
		case e == nil:
			known = true
		case e.Key() == own:
		case e.Operation() != jetstream.KeyValuePut:
			_, there := members[e.Key()]
			delete(members, e.Key())
			dirty = dirty || there
		default:
			var a announcement
			// What another version or a stranger wrote is not for us.
			if json.Unmarshal(e.Value(), &a) != nil || a.Version != version || a.Network != m.Network || checkPeer(a.Self) != nil {
				return
			}
			members[e.Key()] = heard{a.Self, time.Now(), e.Revision()}
			dirty = true
		}
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case e, ok := <-w.Updates():
			if !ok {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				return errors.New("the connection to NATS has ended")
			}
			take(e)
			// What has come meanwhile makes one change.
			for more := true; more; {
				select {
				case e, ok := <-w.Updates():
					if more = ok; ok {
						take(e)
					}
				default:
					more = false
				}
			}
		case <-tick.C:
			// After an interruption everybody gets the time to speak again.
			if !s.cfg.Conn.IsConnected() {
				since = time.Now()
			}
			for key, h := range members {
				if time.Since(h.at) <= s.cfg.TTL || time.Since(since) <= s.cfg.TTL {
					continue
				}
				// Updates can be late, so ask.
				e, err := s.stale(ctx, key, h.revision)
				if err != nil {
					break
				}
				if e != nil {
					take(e)
					continue
				}
				delete(members, key)
				dirty = true
			}
		}
		if !known || !dirty {
			continue
		}
		dirty = false
		peers := make([]particle.Peer, 0, len(members))
		for _, h := range members {
			peers = append(peers, h.peer)
		}
		slices.SortFunc(peers, func(a, b particle.Peer) int {
			return cmp.Or(a.Underlay.Compare(b.Underlay), cmp.Compare(a.Node, b.Node))
		})
		if last != nil && equal(last, peers) {
			continue // announced once more
		}
		last = peers
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		changed(slices.Clone(peers))
	}
}

// stale removes a key that still has that revision, of a node that does not
// repeat its announcement any more. It returns the entry if it is another one.
func (s *Store) stale(ctx context.Context, key string, revision uint64) (jetstream.KeyValueEntry, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.TTL/4)
	defer cancel()
	e, err := s.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil || e.Revision() != revision {
		return e, err
	}
	err = s.kv.Delete(ctx, key, jetstream.LastRevision(revision))
	if errors.Is(err, jetstream.ErrKeyExists) {
		return nil, nil // it speaks again: the watch will tell
	}
	return nil, err
}

func equal(a, b []particle.Peer) bool {
	return slices.EqualFunc(a, b, func(p, q particle.Peer) bool {
		return p.Node == q.Node && p.Underlay == q.Underlay && p.Prefix == q.Prefix && p.Prefix6 == q.Prefix6 && slices.Equal(p.MAC, q.MAC) &&
			slices.EqualFunc(p.Hosts, q.Hosts, func(x, y particle.Host) bool { return x.Address == y.Address && slices.Equal(x.MAC, y.MAC) })
	})
}

// claims is the value of a network's key for claims: the parts by node.
type claims struct {
	Version int                       `json:"version"`
	Parts   map[string][]netip.Prefix `json:"parts"`
}

// Claim implements particle.PrefixClaimer.
func (s *Store) Claim(ctx context.Context, m particle.Member, whole netip.Prefix, bits int) (netip.Prefix, error) {
	var part netip.Prefix
	if !whole.IsValid() || bits < whole.Bits() || bits > whole.Addr().BitLen() {
		return part, fmt.Errorf("claim a part of %s: %d is no length of its parts", whole, bits)
	}
	err := s.change(ctx, m, func(c *claims) (bool, error) {
		for _, p := range c.Parts[m.Self.Node] {
			if p.Bits() == bits && whole.Contains(p.Addr()) {
				part = p
				return false, nil
			}
		}
		var ok bool
		if part, ok = free(slices.Concat(slices.Collect(maps.Values(c.Parts))...), whole, bits); !ok {
			return false, fmt.Errorf("%w: %s has no part of %d bits left", particle.ErrNoPrefixLeft, whole, bits)
		}
		c.Parts[m.Self.Node] = append(c.Parts[m.Self.Node], part)
		return true, nil
	})
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("claim a part of %s for %s: %w", whole, m.Self.Node, err)
	}
	return part, nil
}

// Release implements particle.PrefixClaimer. It gives back all parts that the
// node has of the network.
func (s *Store) Release(ctx context.Context, m particle.Member) error {
	err := s.change(ctx, m, func(c *claims) (bool, error) {
		_, has := c.Parts[m.Self.Node]
		delete(c.Parts, m.Self.Node)
		return has, nil
	})
	if err != nil {
		return fmt.Errorf("release the parts of %s: %w", m.Self.Node, err)
	}
	return nil
}

// change changes a network's claims as one step, unless f returns false.
func (s *Store) change(ctx context.Context, m particle.Member, f func(*claims) (bool, error)) error {
	if err := errors.Join(check(m), s.ctx.Err()); err != nil {
		return err
	}
	key := "claims." + network(m)
	for {
		c := claims{Version: version}
		var revision uint64
		e, err := s.kv.Get(ctx, key)
		switch {
		case err == nil:
			revision = e.Revision()
			if err := json.Unmarshal(e.Value(), &c); err != nil || c.Version != version {
				return fmt.Errorf("key %s holds no claims of version %d", key, version)
			}
		case !errors.Is(err, jetstream.ErrKeyNotFound):
			return err
		}
		if c.Parts == nil {
			c.Parts = map[string][]netip.Prefix{}
		}
		if changes, err := f(&c); err != nil || !changes {
			return err
		}
		value, err := json.Marshal(c)
		if err != nil {
			return err
		}
		if revision == 0 {
			_, err = s.kv.Create(ctx, key, value)
		} else {
			_, err = s.kv.Update(ctx, key, value, revision)
		}
		if err == nil || !errors.Is(err, jetstream.ErrKeyExists) {
			return err
		}
		// Another node was faster.
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// free returns the first part of whole, bits long, that overlaps none of taken.
func free(taken []netip.Prefix, whole netip.Prefix, bits int) (netip.Prefix, bool) {
	part := netip.PrefixFrom(whole.Masked().Addr(), bits)
	for whole.Contains(part.Addr()) {
		i := slices.IndexFunc(taken, part.Overlaps)
		if i < 0 {
			return part, true
		}
		// The next part begins behind the larger of the two.
		larger := part
		if taken[i].Bits() < bits {
			larger = taken[i]
		}
		last := lastOf(larger)
		next := last.Next()
		if !next.IsValid() {
			break
		}
		part = netip.PrefixFrom(next, bits)
	}
	return netip.Prefix{}, false
}

// lastOf returns the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}
