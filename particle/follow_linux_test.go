//go:build linux

package particle

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/volley-run/volley/internal/testenv"
)

// board is a control plane in memory for one other node.
type board struct {
	mu        sync.Mutex
	announced map[string]Member
	changed   map[string]func([]Peer)
	peers     []Peer
	event     chan struct{} // has room for the next change of announced or changed
}

func newBoard() *board {
	return &board{announced: map[string]Member{}, changed: map[string]func([]Peer){}, event: make(chan struct{}, 1)}
}

func (b *board) note() {
	select {
	case b.event <- struct{}{}:
	default:
	}
}

func (b *board) Announce(_ context.Context, m Member) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.announced[m.Network] = m
	b.note()
	return nil
}

func (b *board) Withdraw(_ context.Context, m Member) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.announced, m.Network)
	b.note()
	return nil
}

func (b *board) Watch(ctx context.Context, m Member, changed func([]Peer)) error {
	changed(b.peers)
	<-ctx.Done()
	return ctx.Err()
}

func (b *board) Close() error { return nil }

// until waits for a state of the board.
func (b *board) until(t *testing.T, what string, f func() bool) {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		b.mu.Lock()
		done := f()
		b.mu.Unlock()
		if done {
			return
		}
		select {
		case <-b.event:
		case <-late:
			t.Fatalf("never: %s", what)
		}
	}
}

func TestFollowKeepsNetworksAndControlPlaneInStep(t *testing.T) {
	testenv.Need(t, testenv.NetAdmin)
	ctx := context.Background()
	node, err := OpenNode(NodeConfig{Name: "follow", StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := node.GC(ctx); err != nil {
			t.Error(err)
		}
		if err := node.Close(); err != nil {
			t.Error(err)
		}
	})
	nw, err := node.Declare(Spec{
		Name: "f1", Tenant: "acme", Prefix: netip.MustParsePrefix("10.99.0.0/16"), NodePrefix: netip.MustParsePrefix("10.99.1.0/24"),
		Endpoints: 3, Underlay: Underlay{Address: netip.MustParseAddr("127.0.0.1"), Port: 14789},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := nw.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	b := newBoard()
	b.peers = []Peer{
		{Node: "b", Underlay: netip.MustParseAddr("127.0.0.2"), Prefix: netip.MustParsePrefix("10.99.2.0/24")},
		{Node: "wrong", Underlay: netip.MustParseAddr("127.0.0.3"), Prefix: netip.MustParsePrefix("10.99.1.0/24")},
	}
	following, stop := context.WithCancel(ctx)
	ended := make(chan error)
	go func() { ended <- node.Follow(following, b, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() { stop(); <-ended })
	if err := nw.Apply(ctx); err != nil {
		t.Fatal(err)
	}
	b.until(t, "announced", func() bool { return b.announced["acme/f1"].Self.Prefix == nw.Spec().NodePrefix })
	for deadline := time.Now().Add(20 * time.Second); ; {
		s, err := nw.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Peers) == 1 && s.Peers[0].Node == "b" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("peers are %v", s.Peers)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := nw.Close(ctx); err != nil {
		t.Fatal(err)
	}
	b.until(t, "withdrawn", func() bool { return len(b.announced) == 0 })
}
