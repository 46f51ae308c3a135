package particle

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/particle/rtnl"
)

// machine is the guest's end of a tap, without a virtual machine: it sends and
// takes UDP packets as they are on the wire.
type machine struct {
	Endpoint
	tap *os.File
}

func tapMAC() net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, 1} }

func connectMachine(t *testing.T, nw *Network, i int) *machine {
	t.Helper()
	tap, err := nw.ConnectTap(context.Background(), i, tapMAC())
	if err != nil {
		t.Fatal(err)
	}
	if want := 1450; tap.MTU != want {
		t.Errorf("the tap's MTU is %d, want %d", tap.MTU, want)
	}
	blocking, err := sys.OpenTap(nw.Namespace(), tap.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer blocking.Close()
	fd, err := syscall.Dup(int(blocking.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	inside, err := openPlace(nw.Namespace())
	if err != nil {
		t.Fatal(err)
	}
	defer inside.close()
	// What is sent to it at once, where a guest takes its time, would be lost.
	do(t, inside.conn, func(b *rtnl.Batch) { b.AwaitCarrier(tap.Name) })
	f := os.NewFile(uintptr(fd), tap.Name)
	t.Cleanup(func() { _ = f.Close() })
	return &machine{endpoint(t, nw, i), f}
}

const (
	vnetHeaderBytes = 10
	etherBytes      = 14
	udpPort         = 7777
)

// udp returns a frame with a UDP packet, behind the header of virtio.
func udp(from, to netip.Addr, text string) []byte {
	b := make([]byte, vnetHeaderBytes, 128)
	b = append(b, tapMAC()...)
	b = append(b, tapMAC()...)
	segment := binary.BigEndian.AppendUint16(nil, udpPort)
	segment = binary.BigEndian.AppendUint16(segment, udpPort)
	segment = binary.BigEndian.AppendUint16(segment, uint16(8+len(text)))
	segment = append(append(segment, 0, 0), text...)
	pseudo := append(append(from.AsSlice(), to.AsSlice()...), 0, 17, 0, byte(len(segment)))
	binary.BigEndian.PutUint16(segment[6:], checksum(append(pseudo, segment...)))
	if from.Is6() {
		b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(segment)), 17, 64)
		b = append(append(b, from.AsSlice()...), to.AsSlice()...)
		return append(b, segment...)
	}
	header := append([]byte{0x45, 0, 0, byte(20 + len(segment)), 0, 0, 0, 0, 64, 17, 0, 0}, append(from.AsSlice(), to.AsSlice()...)...)
	binary.BigEndian.PutUint16(header[10:], checksum(header))
	return append(append(append(b, 8, 0), header...), segment...)
}

func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i, x := range b {
		sum += uint32(x) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func (m *machine) send(t *testing.T, from, to netip.Addr, text string) {
	t.Helper()
	if _, err := m.tap.Write(udp(from, to, text)); err != nil {
		t.Fatal(err)
	}
}

// expect waits for a packet from an address.
func (m *machine) expect(t *testing.T, from netip.Addr, text string) {
	t.Helper()
	if err := m.tap.SetReadDeadline(time.Now().Add(exchangeTime)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2048)
	for {
		n, err := m.tap.Read(b)
		if err != nil {
			t.Fatalf("no packet from %s: %v", from, err)
		}
		p := b[vnetHeaderBytes+etherBytes : n]
		at := 12
		if p[0]>>4 == 6 {
			at = 8
		}
		if source, ok := netip.AddrFromSlice(p[at : at+from.BitLen()/8]); ok && source == from && string(p[len(p)-len(text):]) == text {
			return
		}
	}
}

// program is a socket of an endpoint that is no machine.
func program(t *testing.T, ep Endpoint, a netip.Addr) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	if err := ep.within(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, udpPort)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// receive returns the next packet, or false if there is none within d.
func receive(t *testing.T, c *net.UDPConn, d time.Duration) (text string, from netip.Addr, ok bool) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2048)
	n, a, err := c.ReadFromUDPAddrPort(b)
	return string(b[:n]), a.Addr().Unmap(), err == nil
}

func TestMachinesAndProgramsReachEachOtherOnAllNodes(t *testing.T) {
	nodes := newCluster(t, 2)
	specs := jobSpecs(nodes, "job", 9, nil)
	near, far := nodes[0].up(t, specs[0]), nodes[1].up(t, specs[1])
	m := connectMachine(t, near, 2)
	other := connectMachine(t, near, 3)
	away := connectMachine(t, far, 4)
	for _, six := range []bool{false, true} {
		of := func(ep Endpoint) netip.Addr {
			if six {
				return ep.Address6
			}
			return ep.Address
		}
		me := of(m.Endpoint)
		for _, ep := range []Endpoint{endpoint(t, near, 5), endpoint(t, far, 6)} {
			p := program(t, ep, of(ep))
			m.send(t, me, of(ep), "from the machine")
			if text, from, ok := receive(t, p, exchangeTime); !ok || text != "from the machine" || from != me {
				t.Errorf("%s gets %q from %s, %v; want what %s has sent", of(ep), text, from, ok, me)
			}
			if _, err := p.WriteToUDPAddrPort([]byte("to the machine"), netip.AddrPortFrom(me, udpPort)); err != nil {
				t.Fatal(err)
			}
			m.expect(t, of(ep), "to the machine")
		}
		for _, peer := range []*machine{other, away} {
			m.send(t, me, of(peer.Endpoint), "from machine to machine")
			peer.expect(t, me, "from machine to machine")
		}
	}
}

// What a machine claims to be another's never gets anywhere; what is its own,
// sent after it, does.
func TestAMachineCannotSendFromAnotherAddress(t *testing.T) {
	nodes := newCluster(t, 2)
	specs := jobSpecs(nodes, "job", 9, nil)
	near, far := nodes[0].up(t, specs[0]), nodes[1].up(t, specs[1])
	m := connectMachine(t, near, 2)
	neighbour := connectMachine(t, near, 3)
	program4, program6 := endpoint(t, near, 5), endpoint(t, far, 6)
	for _, tc := range []struct {
		own  netip.Addr
		lies []netip.Addr
	}{
		{m.Address, []netip.Addr{
			neighbour.Address, program4.Address, program6.Address, GatewayAddr(near.spec.NodePrefix),
			netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("127.0.0.1"), netip.IPv4Unspecified(),
		}},
		{m.Address6, []netip.Addr{
			neighbour.Address6, program4.Address6, program6.Address6, GatewayAddr(near.spec.NodePrefix6),
			netip.MustParseAddr("2001:db8::1"), netip.IPv6Loopback(), netip.MustParseAddr("fe80::1"),
		}},
	} {
		for _, ep := range []Endpoint{program4, program6} {
			to := ep.Address
			if tc.own.Is6() {
				to = ep.Address6
			}
			p := program(t, ep, to)
			for _, lie := range tc.lies {
				m.send(t, lie, to, "a lie")
			}
			m.send(t, tc.own, to, "the truth")
			if text, from, _ := receive(t, p, exchangeTime); text != "the truth" || from != tc.own {
				t.Errorf("%s gets %q from %s first, want the truth from %s", to, text, from, tc.own)
			}
			if text, from, ok := receive(t, p, 20*time.Millisecond); ok {
				t.Errorf("%s gets %q from %s", to, text, from)
			}
		}
		to := neighbour.Address
		if tc.own.Is6() {
			to = neighbour.Address6
		}
		for _, lie := range tc.lies {
			m.send(t, lie, to, "a lie")
		}
		m.send(t, tc.own, to, "the truth")
		neighbour.expect(t, tc.own, "the truth")
	}
}

func TestTapsMayBeRepeatedAndLeaveNothing(t *testing.T) {
	ctx := context.Background()
	nodes := newCluster(t, 1)
	nw := nodes[0].up(t, jobSpecs(nodes, "job", 3, nil)[0])
	inside, err := openPlace(nw.Namespace())
	if err != nil {
		t.Fatal(err)
	}
	defer inside.close()
	links := func() int {
		t.Helper()
		all, err := inside.conn.Links()
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	before := links()
	program := endpoint(t, nw, 1)
	for range 2 {
		m := connectMachine(t, nw, 0)
		if _, err := nw.ConnectTap(ctx, 0, tapMAC()); err != nil {
			t.Errorf("while it is in use: %v", err)
		}
		m.send(t, m.Address, program.Address, "x")
		if n := links(); n != before+1 {
			t.Errorf("%d links, want one more than %d", n, before)
		}
		for range 2 {
			if err := nw.DisconnectTap(ctx, 0); err != nil {
				t.Error(err)
			}
		}
		if n := links(); n != before {
			t.Errorf("%d links, want the %d of before", n, before)
		}
		// The address is a program's again.
		if err := exchange(endpoint(t, nw, 0), program, endpoint(t, nw, 0).Address6, program.Address6, 100); err != nil {
			t.Error(err)
		}
	}
	if _, err := nw.ConnectTap(ctx, 3, tapMAC()); !errors.Is(err, ErrNotFound) {
		t.Errorf("an endpoint that there is not: %v, want %v", err, ErrNotFound)
	}
	if err := nw.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := nw.DisconnectTap(ctx, 0); err != nil {
		t.Errorf("disconnect after Close: %v", err)
	}
	if _, err := nw.ConnectTap(ctx, 0, tapMAC()); !errors.Is(err, ErrNotFound) {
		t.Errorf("connect after Close: %v, want %v", err, ErrNotFound)
	}
	direct := nodes[0].up(t, jobSpecs(nodes, "direct", 2, func(s *Spec) { s.Design = Direct })[0])
	if _, err := direct.ConnectTap(ctx, 0, tapMAC()); !errors.Is(err, ErrConflict) {
		t.Errorf("a network of the design direct: %v, want %v", err, ErrConflict)
	}
}
