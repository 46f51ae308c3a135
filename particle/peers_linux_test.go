package particle

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/volley-run/volley/particle/rtnl"
)

func TestSetPeersAddsAndRemovesWhatHasChanged(t *testing.T) {
	t.Parallel()
	for _, design := range []Design{AnyIP, Direct} {
		t.Run(string(design), func(t *testing.T) {
			nodes := newCluster(t, 3)
			ctx := context.Background()
			specs := jobSpecs(nodes, "job", 1, func(s *Spec) { s.Design = design })
			peers := make([]Peer, 3)
			var nws []*Network
			for i := range specs {
				specs[i].Peers = nil
				peers[i] = peerOf(nodes[i], specs[i])
				nws = append(nws, nodes[i].up(t, specs[i]))
			}
			a, b, c := endpoint(t, nws[0], 0), endpoint(t, nws[1], 0), endpoint(t, nws[2], 0)
			set := func(i int, peers ...Peer) {
				t.Helper()
				if err := nws[i].SetPeers(ctx, peers); err != nil {
					t.Fatal(err)
				}
			}
			reach := func(to Endpoint, want bool) {
				t.Helper()
				for _, pair := range [][2]netip.Addr{{a.Address, to.Address}, {a.Address6, to.Address6}} {
					err := reaches(a, pair[0], pair[1])
					for deadline := time.Now().Add(exchangeTime); err != nil && want && time.Now().Before(deadline); {
						// Who has an address that did not answer before is
						// asked only once a second.
						err = reaches(a, pair[0], pair[1])
					}
					if (err == nil) != want {
						t.Errorf("%s reaches %s: %v, want %t", pair[0], pair[1], err, want)
					}
				}
			}
			set(1, peers[0])
			set(2, peers[0])
			reach(b, false)
			set(0, peers[1])
			reach(b, true)
			reach(c, false)
			set(0, peers[1], peers[2])
			reach(b, true)
			reach(c, true)
			// The same through another Node value, as another process would.
			other, err := nodes[0].open(t).Open("job")
			if err != nil {
				t.Fatal(err)
			}
			if err := other.SetPeers(ctx, []Peer{peers[2]}); err != nil {
				t.Fatal(err)
			}
			reach(b, false)
			reach(c, true)
			// Apply keeps what a control plane said.
			if err := nws[0].Apply(ctx); err != nil {
				t.Fatal(err)
			}
			reach(c, true)
			if s, err := nws[0].Status(ctx); err != nil || !reflect.DeepEqual(s.Peers, []Peer{peers[2]}) {
				t.Errorf("peers are %v, %v, want %v", s.Peers, err, peers[2])
			}
			set(0)
			reach(c, false)
		})
	}
}

func TestStaticPeersStayWhateverAControlPlaneSays(t *testing.T) {
	nodes := newCluster(t, 2)
	ctx := context.Background()
	specs := jobSpecs(nodes, "job", 1, nil)
	a, b := nodes[0].up(t, specs[0]), nodes[1].up(t, specs[1])
	wrong := peerOf(nodes[1], specs[1])
	wrong.Prefix, wrong.Prefix6 = netip.Prefix{}, netip.Prefix{}
	for _, peers := range [][]Peer{{wrong}, nil} {
		if err := a.SetPeers(ctx, peers); err != nil {
			t.Fatal(err)
		}
		from, to := endpoint(t, a, 0), endpoint(t, b, 0)
		if err := reaches(from, from.Address, to.Address); err != nil {
			t.Errorf("with %v: %v", peers, err)
		}
	}
	// Another Apply may declare others.
	specs[0].Peers = nil
	a = nodes[0].up(t, specs[0])
	from, to := endpoint(t, a, 0), endpoint(t, b, 0)
	if err := reaches(from, from.Address, to.Address); err == nil {
		t.Error("the peer that is not declared any more is reached")
	}
}

func TestHostsOfPeersAreReachedOneByOne(t *testing.T) {
	nodes := newCluster(t, 2)
	specs := jobSpecs(nodes, "job", 1, nil)
	b := nodes[1].up(t, specs[1])
	to := endpoint(t, b, 0)
	p := Peer{Node: "bridge", Underlay: nodes[1].address, Hosts: []Host{
		{Address: to.Address, MAC: GatewayMAC(b.Spec().VNI, nodes[1].address)},
		{Address: to.Address6, MAC: GatewayMAC(b.Spec().VNI, nodes[1].address)},
	}}
	specs[0].Peers = []Peer{p}
	a := nodes[0].up(t, specs[0])
	from := endpoint(t, a, 0)
	for _, pair := range [][2]netip.Addr{{from.Address, to.Address}, {from.Address6, to.Address6}} {
		if err := reaches(from, pair[0], pair[1]); err != nil {
			t.Error(err)
		}
	}
}

func TestPeersThatDoNotFitAreRefused(t *testing.T) {
	nodes := newCluster(t, 1)
	ctx := context.Background()
	spec := jobSpecs(nodes, "job", 1, nil)[0]
	nw := nodes[0].up(t, spec)
	own := peerOf(nodes[0], spec)
	if _, ok := errors.AsType[*SpecError](nw.SetPeers(ctx, []Peer{own})); !ok {
		t.Error("the node itself was taken for a peer")
	}
	alone := spec
	alone.Name, alone.Underlay, alone.VNI = "alone", Underlay{}, 5
	lone := nodes[0].up(t, alone)
	own.Underlay, own.Prefix, own.Prefix6 = netip.MustParseAddr("192.0.2.77"), netip.Prefix{}, netip.Prefix{}
	if _, ok := errors.AsType[*SpecError](lone.SetPeers(ctx, []Peer{own})); !ok {
		t.Error("a network without an underlay took a peer")
	}
	ghost, err := nodes[0].Declare(Spec{Name: "ghost", Prefix: spec.Prefix, Underlay: spec.Underlay})
	if err != nil {
		t.Fatal(err)
	}
	if err := ghost.SetPeers(ctx, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("peers of a network that is not there: %v", err)
	}
}

// reaches sends a datagram and waits for its answer, briefly.
func reaches(from Endpoint, source, target netip.Addr) error {
	const port, wait = 7, 150 * time.Millisecond
	return from.within(func() error {
		family := syscall.AF_INET
		if source.Is6() {
			family = syscall.AF_INET6
		}
		fd, err := syscall.Socket(family, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer syscall.Close(fd)
		limit := syscall.NsecToTimeval(int64(wait))
		err = errors.Join(
			syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &limit),
			syscall.Bind(fd, sockaddr(netip.AddrPortFrom(source, 0))))
		if err == nil {
			err = syscall.Connect(fd, sockaddr(netip.AddrPortFrom(target, port)))
		}
		if err == nil {
			_, err = syscall.Write(fd, []byte("hello"))
		}
		if err == nil {
			_, err = syscall.Read(fd, make([]byte, 16))
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			return nil // nobody listens there, which only the other end can say
		}
		return fmt.Errorf("from %s to %s: %w", source, target, err)
	})
}

func TestTenantsWithTheSamePrefixDoNotMeet(t *testing.T) {
	nodes := newCluster(t, 2)
	var nws [2][2]*Network // by tenant and node
	for tenant := range nws {
		for i, s := range jobSpecs(nodes, fmt.Sprint("job", tenant), 2, func(s *Spec) { s.Tenant = fmt.Sprint("tenant", tenant) }) {
			nws[tenant][i] = nodes[i].up(t, s)
		}
	}
	// Both tenants listen to the same address and port, and answer by name.
	for tenant := range nws {
		from, to := endpoint(t, nws[tenant][0], 0), endpoint(t, nws[tenant][1], 1)
		if err := exchange(from, to, from.Address, to.Address, 10_000); err != nil {
			t.Errorf("tenant %d: %v", tenant, err)
		}
	}
	// What only one has is not there for the other.
	if err := nws[1][1].Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	from, to := endpoint(t, nws[1][0], 0), endpoint(t, nws[0][1], 1)
	if err := reaches(from, from.Address, to.Address); err == nil {
		t.Error("one tenant reaches the other")
	}
	from = endpoint(t, nws[0][0], 0)
	if err := reaches(from, from.Address, to.Address); err != nil {
		t.Errorf("the tenant that stays: %v", err)
	}
	// Nor is the node's own network.
	if err := reaches(from, from.Address, nodes[0].address); err == nil {
		t.Error("an endpoint reaches the underlay")
	}
}

func TestJobsOfATenantMeetIfTheTenantIsWhatIsIsolated(t *testing.T) {
	for _, design := range []Design{AnyIP, Consolidated} {
		t.Run(string(design), func(t *testing.T) {
			nodes := newCluster(t, 2)
			ctx := context.Background()
			jobs := func(name string, third int) (nws []*Network) {
				for i, s := range jobSpecs(nodes, name, 2, func(s *Spec) {
					s.Isolation, s.Design = IsolateTenant, design
					node := s.NodePrefix.Addr().As4()
					s.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(third), 0}), 20)
					s.NodePrefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(third) + node[2], 0}), 24)
					s.Prefix6, s.NodePrefix6 = netip.Prefix{}, netip.Prefix{}
				}) {
					nws = append(nws, nodes[i].up(t, s))
				}
				return nws
			}
			one, two := jobs("one", 0), jobs("two", 16)
			if one[0].Namespace() != two[0].Namespace() || one[0].Spec().VNI != two[0].Spec().VNI {
				t.Error("the jobs do not share a segment")
			}
			reach := func(from, to Endpoint) {
				t.Helper()
				if err := exchange(from, to, from.Address, to.Address, 1000); err != nil {
					t.Error(err)
				}
			}
			reach(endpoint(t, one[0], 0), endpoint(t, two[1], 1))
			reach(endpoint(t, two[1], 0), endpoint(t, one[1], 0))
			reach(endpoint(t, two[0], 0), endpoint(t, one[1], 0))
			for _, nw := range one {
				if err := nw.Close(ctx); err != nil {
					t.Fatal(err)
				}
			}
			reach(endpoint(t, two[0], 0), endpoint(t, two[1], 1))
			from := endpoint(t, two[0], 0)
			if err := reaches(from, from.Address, EndpointAddr(one[1].Spec().NodePrefix, 0)); err == nil {
				t.Error("the job that was removed is reached")
			}
			reach(endpoint(t, jobs("one", 0)[0], 0), endpoint(t, two[1], 0))
		})
	}
}

func TestApplyRefusesWhatIsInConflict(t *testing.T) {
	nodes := newCluster(t, 1)
	n := nodes[0]
	base := jobSpecs(nodes, "job", 2, func(s *Spec) { s.VNI = 100 })[0]
	first := n.up(t, base)
	tenant := base
	tenant.Name, tenant.Tenant, tenant.Isolation, tenant.VNI = "whole", "big", IsolateTenant, 200
	n.up(t, tenant)
	for name, change := range map[string]func(*Spec){
		"a larger network of that name":           func(s *Spec) { s.Endpoints = 3 },
		"a job of that name of another tenant":    func(s *Spec) { s.Tenant, s.VNI = "other", 101 },
		"the VNI of another job":                  func(s *Spec) { s.Name = "second" },
		"another VNI of the same tenant":          func(s *Spec) { *s = tenant; s.Name, s.VNI = "part", 201 },
		"a prefix that the tenant has":            func(s *Spec) { *s = tenant; s.Name = "part" },
		"another design of the tenant":            func(s *Spec) { *s = tenant; s.Name, s.Design = "part", Direct },
		"a label that two segments' names become": func(s *Spec) { s.Tenant, s.Name, s.VNI = "default-a", "b", 102 },
	} {
		t.Run(name, func(t *testing.T) {
			if name == "a label that two segments' names become" {
				other := base
				other.Name, other.VNI = "a-b", 103
				n.up(t, other)
			}
			s := base
			change(&s)
			nw, err := n.Declare(s)
			if err != nil {
				t.Fatal(err)
			}
			if err := nw.Apply(context.Background()); !errors.Is(err, ErrConflict) {
				t.Errorf("Apply = %v, want %v", err, ErrConflict)
			}
			from := endpoint(t, first, 0)
			if err := exchange(from, endpoint(t, first, 1), from.Address, endpoint(t, first, 1).Address, 1); err != nil {
				t.Errorf("the network that was there: %v", err)
			}
		})
	}
	if list, err := n.List(context.Background()); err != nil || len(list) != 2 {
		t.Errorf("%d networks, %v, want 2", len(list), err)
	}
}

func TestApplySaysWhichFieldIsWrong(t *testing.T) {
	nodes := newCluster(t, 1)
	spec := jobSpecs(nodes, "job", 1, func(s *Spec) { s.Underlay.Address = netip.MustParseAddr("203.0.113.5") })[0]
	nw, err := nodes[0].Declare(spec)
	if err != nil {
		t.Fatal(err)
	}
	err = nw.Apply(context.Background())
	if wrong, ok := errors.AsType[*SpecError](err); !ok || wrong.Field != "underlay.address" {
		t.Errorf("Apply = %v, want a word on underlay.address", err)
	}
}

func TestAFullBridgeIsToldAndNothingIsLeft(t *testing.T) {
	nodes := newCluster(t, 1)
	n := nodes[0]
	for _, design := range []Design{Baseline, Direct, Shared, Batched} {
		spec := jobSpecs(nodes, "big", 1023, func(s *Spec) {
			s.Design, s.NodePrefix = design, netip.MustParsePrefix("10.77.0.0/17")
		})[0]
		nw, err := n.Declare(spec)
		if err != nil {
			t.Fatal(err)
		}
		if err := nw.Apply(context.Background()); !errors.Is(err, ErrBridgeFull) {
			t.Errorf("%s: %v, want %v", design, err, ErrBridgeFull)
		}
	}
	// The kernel's own word, where somebody else has taken ports.
	spec := jobSpecs(nodes, "taken", 4, func(s *Spec) { s.Design = Batched })[0]
	nw, err := n.Declare(spec)
	if err != nil {
		t.Fatal(err)
	}
	full := fmt.Errorf("x: %w", rtnl.ErrBridgeFull)
	if err := bridgeFull(full); !errors.Is(err, ErrBridgeFull) {
		t.Errorf("%v is not %v", err, ErrBridgeFull)
	}
	if _, err := nw.Status(context.Background()); !errors.Is(err, ErrNotFound) {
		t.Errorf("status of what was never made: %v", err)
	}
}

func TestPacketsOfAnySizePass(t *testing.T) {
	for _, six := range []bool{false, true} {
		t.Run(fmt.Sprintf("over IPv6 %t", six), func(t *testing.T) {
			nodes := newCluster(t, 2)
			var nws []*Network
			for i, s := range jobSpecs(nodes, "job", 1, func(s *Spec) {
				if six {
					s.Underlay.Address = nodes[s.NodePrefix.Addr().As4()[2]-1].address6
				}
			}) {
				nws = append(nws, nodes[i].up(t, s))
			}
			want := 1450
			if six {
				want = 1430
			}
			status, err := nws[0].Status(context.Background())
			if err != nil || status.MTU != want {
				t.Errorf("MTU = %d, %v, want %d", status.MTU, err, want)
			}
			from, to := endpoint(t, nws[0], 0), endpoint(t, nws[1], 0)
			for _, size := range []int{1, want - 28, want - 27, 9000} { // as UDP: fragments above the MTU
				if err := datagram(from, to, from.Address, to.Address, size); err != nil {
					t.Errorf("%d bytes: %v", size, err)
				}
			}
			for _, size := range []int{want - 48, want - 47, 9000} {
				if err := datagram(from, to, from.Address6, to.Address6, size); err != nil {
					t.Errorf("%d bytes by IPv6: %v", size, err)
				}
			}
			if err := exchange(from, to, from.Address, to.Address, 5<<20); err != nil {
				t.Error(err)
			}
		})
	}
}

// datagram sends one of that size from one endpoint to the other.
func datagram(from, to Endpoint, source, target netip.Addr, size int) error {
	family := syscall.AF_INET
	if source.Is6() {
		family = syscall.AF_INET6
	}
	socket := func(ep Endpoint, own netip.AddrPort) (fd int, err error) {
		err = ep.within(func() error {
			if fd, err = syscall.Socket(family, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			limit := syscall.NsecToTimeval(int64(exchangeTime))
			return errors.Join(
				syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &limit),
				syscall.Bind(fd, sockaddr(own)))
		})
		return fd, err
	}
	const port = 9999
	server, err := socket(to, netip.AddrPortFrom(target, port))
	if err != nil {
		return err
	}
	defer syscall.Close(server)
	client, err := socket(from, netip.AddrPortFrom(source, 0))
	if err != nil {
		return err
	}
	defer syscall.Close(client)
	if err := syscall.Sendto(client, make([]byte, size), 0, sockaddr(netip.AddrPortFrom(target, port))); err != nil {
		return err
	}
	n, err := syscall.Read(server, make([]byte, size+1))
	if err == nil && n != size {
		err = fmt.Errorf("%d of %d bytes arrived", n, size)
	}
	return err
}

func TestTwoHundredJobsComeAndGoAtOnce(t *testing.T) {
	t.Parallel()
	nodes := newCluster(t, 2)
	ctx := context.Background()
	const jobs, atOnce = 200, 20
	queue := make(chan int)
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for i := range queue {
				if err := comeAndGo(ctx, nodes, i); err != nil {
					t.Errorf("job %d: %v", i, err)
				}
			}
		})
	}
	for i := range jobs {
		queue <- i
	}
	close(queue)
	all.Wait()
}

// comeAndGo makes a job on both nodes, all with the same prefix, exchanges
// something that only this job could answer, and removes it.
func comeAndGo(ctx context.Context, nodes []*testNode, i int) (err error) {
	var nws []*Network
	defer func() {
		for _, nw := range nws {
			err = errors.Join(err, nw.Close(ctx))
		}
	}()
	for k, s := range jobSpecs(nodes, fmt.Sprint("job", i), 10, func(s *Spec) { s.VNI = uint32(1000 + i) }) {
		nw, err := nodes[k].Declare(s)
		if err != nil {
			return err
		}
		nws = append(nws, nw)
		if err := nw.Apply(ctx); err != nil {
			return err
		}
	}
	from, to := nws[0].endpoint(i%10), nws[1].endpoint((i+3)%10)
	return exchange(from, to, from.Address, to.Address, 100+i)
}
