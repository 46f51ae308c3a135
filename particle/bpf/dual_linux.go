//go:build linux

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// A TCP socket on :: serves IPv4 and IPv6. One of an endpoint with both is bound
// to one address, its IPv4 address, mapped: to sockets that are bound to an IPv6
// address the kernel gives no IPv4. For IPv6, bind6 marks the socket, the
// program listen puts it where the program redirect finds it, and redirect,
// which is on the network namespace, gives it what comes for the endpoint's IPv6
// address, unless a socket listens there itself.

// Offsets in struct bpf_sockopt, struct bpf_sock_ops and struct bpf_sk_lookup of
// linux/bpf.h.
const (
	optSocket      = 0
	optValue       = 8
	optEnd         = 16
	optLevel       = 24
	optName        = 28
	optLength      = 32
	opsOp          = 0
	opsFamily      = 20
	opsLocal6      = 48
	opsPort        = 68
	opsSocket      = 184
	lookupFamily   = 8
	lookupProtocol = 12
	lookupLocal6   = 44
	lookupPort     = 60
)

const (
	opTCPListen   = 11 // BPF_SOCK_OPS_TCP_LISTEN_CB
	storageCreate = 1  // BPF_SK_STORAGE_GET_F_CREATE
	levelIP6      = 41
	optOnly6      = 26 // IPV6_V6ONLY

	// A mark: an IPv6 address and flags.
	markSize            = 20
	markFlags           = 16
	markOnly6, markBoth = 1, 2

	// A listener's key: its IPv6 address, the cookie of its network namespace,
	// and its port in host byte order. The offsets are from the top of the stack.
	keySize      = 32
	keyIP6       = -32
	keyCookie    = -16
	keyPort      = -8
	keyEnd       = -4
	maxListeners = 1 << 16

	redirectPin = "redirect-"
)

// dual are the maps for sockets of both families. Its zero value stands for a
// kernel that cannot.
type dual struct {
	// marks say whether a socket is for IPv6 only, and which IPv6 address one
	// that is bound to an IPv4 address serves too.
	marks *ebpf.Map
	// both holds marked sockets that listen, plain those that listen on an IPv6
	// address.
	both, plain *ebpf.Map
}

func (d dual) ok() bool { return d.marks != nil }

// maps are in the order of dualPins and dualSpecs.
func (d dual) maps() [3]*ebpf.Map { return [...]*ebpf.Map{d.marks, d.both, d.plain} }

func (d dual) close() error {
	var errs []error
	for _, m := range d.maps() {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

func dualSpecs() [3]ebpf.MapSpec {
	word := &btf.Int{Name: "unsigned int", Size: 4}
	mark := &btf.Array{Index: word, Type: word, Nelems: markSize / 4}
	listeners := ebpf.MapSpec{Type: ebpf.SockHash, KeySize: keySize, ValueSize: 8, MaxEntries: maxListeners}
	both, plain := listeners, listeners
	both.Name, plain.Name = "volley_both", "volley_plain"
	return [...]ebpf.MapSpec{
		{Name: "volley_marks", Type: ebpf.SkStorage, KeySize: 4, ValueSize: markSize, Flags: unix.BPF_F_NO_PREALLOC, Key: word, Value: mark},
		both, plain,
	}
}

func dualPins() [3]string { return [...]string{"marks", "both", "plain"} }

// newDual makes the maps, or opens those that are pinned in dir, and pins them
// there. It is the zero value, without an error, if the kernel has not all that
// it takes.
func newDual(dir string) (dual, error) {
	d, err := openDual(dir)
	if err != nil || d.ok() {
		return d, err
	}
	if d = makeDual(); !d.ok() {
		return d, nil
	}
	for i, m := range d.maps() {
		path := filepath.Join(dir, dualPins()[i])
		if err = os.Remove(path); err == nil || errors.Is(err, fs.ErrNotExist) {
			err = m.Pin(path)
		}
		if err != nil {
			return dual{}, errors.Join(err, d.close())
		}
	}
	return d, nil
}

// openDual opens the maps that are pinned in dir, or returns the zero value if
// one is not.
func openDual(dir string) (dual, error) {
	var all [3]*ebpf.Map
	d := func() dual { return dual{marks: all[0], both: all[1], plain: all[2]} }
	for i, name := range dualPins() {
		var err error
		if all[i], err = ebpf.LoadPinnedMap(filepath.Join(dir, name), nil); errors.Is(err, fs.ErrNotExist) {
			return dual{}, d().close()
		} else if err != nil {
			return dual{}, errors.Join(err, d().close())
		}
	}
	return d(), nil
}

// makeDual makes the maps, and returns the zero value if the kernel cannot, or
// has not the programs' functions.
func makeDual() dual {
	var all [3]*ebpf.Map
	d := func() dual { return dual{all[0], all[1], all[2]} }
	for i, spec := range dualSpecs() {
		var err error
		if all[i], err = ebpf.NewMap(&spec); err != nil { // before Linux 5.9
			d().close()
			return dual{}
		}
	}
	some, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: entrySize, MaxEntries: 1})
	if err != nil {
		d().close()
		return dual{}
	}
	defer some.Close()
	bind := program{"bind6", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet6Bind, bind6}
	for _, load := range []func() (*ebpf.Program, error){
		func() (*ebpf.Program, error) { return bind.load(some, 0, d()) },
		func() (*ebpf.Program, error) { return dualPrograms()[0].load(nil, 0, d()) },
		func() (*ebpf.Program, error) { return dualPrograms()[1].load(nil, 0, d()) },
		func() (*ebpf.Program, error) { return redirect(d(), 1) },
	} {
		p, err := load()
		if err != nil { // before Linux 5.15
			d().close()
			return dual{}
		}
		p.Close()
	}
	return d()
}

// mark marks a TCP socket on :: of an endpoint with both families, and goes to
// "own4". It goes to label for another one. The last word of the address is in
// R4.
func (b *builder) mark(label string) {
	b.add(
		asm.JNE.Imm(asm.R4, 0, label), // loopback
		asm.LoadMem(asm.R1, entry, entryHas, asm.Word),
		asm.JNE.Imm(asm.R1, has4|has6, label),
		asm.LoadMem(asm.R1, ctx, addrProtocol, asm.Word),
		asm.JNE.Imm(asm.R1, protocolTCP, label),
	)
	b.markOf(addrSocket, storageCreate, label)
	b.add(
		asm.JEq.Imm(asm.R0, 0, label), // no memory
		asm.LoadMem(asm.R1, asm.R0, markFlags, asm.Word),
		asm.And.Imm(asm.R1, markOnly6),
		asm.JNE.Imm(asm.R1, 0, label),
		asm.Mov.Imm(asm.R1, markBoth),
		asm.StoreMem(asm.R0, markFlags, asm.R1, asm.Word),
	)
	b.copy6(asm.R0, 0, entry, entryIP6)
	b.add(asm.Ja.Label("own4"))
}

// copy6 copies an IPv6 address. It uses R1.
func (b *builder) copy6(to asm.Register, offset int16, from asm.Register, fromOffset int16) {
	for i := range int16(4) {
		b.add(
			asm.LoadMem(asm.R1, from, fromOffset+4*i, asm.Word),
			asm.StoreMem(to, offset+4*i, asm.R1, asm.Word),
		)
	}
}

// dualPrograms are those on the control group besides programs.
func dualPrograms() [2]program {
	return [...]program{
		{"listen", ebpf.SockOps, ebpf.AttachCGroupSockOps, listen},
		{"setsockopt", ebpf.CGroupSockopt, ebpf.AttachCGroupSetsockopt, setsockopt},
	}
}

// setsockopt notes which sockets are for IPv6 only. No other program can ask.
func setsockopt(b *builder) {
	b.add(
		asm.Mov.Reg(ctx, asm.R1),
		asm.LoadMem(asm.R1, ctx, optLevel, asm.Word),
		asm.JNE.Imm(asm.R1, levelIP6, "done"),
		asm.LoadMem(asm.R1, ctx, optName, asm.Word),
		asm.JNE.Imm(asm.R1, optOnly6, "done"),
		asm.LoadMem(asm.R1, ctx, optValue, asm.DWord),
		asm.LoadMem(asm.R2, ctx, optEnd, asm.DWord),
		asm.Mov.Reg(asm.R3, asm.R1),
		asm.Add.Imm(asm.R3, 4),
		asm.JGT.Reg(asm.R3, asm.R2, "done"),
		asm.LoadMem(asm.R8, asm.R1, 0, asm.Word),
	)
	b.markOf(optSocket, storageCreate, "done")
	b.add(
		asm.JEq.Imm(asm.R0, 0, "done"),
		asm.LoadMem(asm.R1, asm.R0, markFlags, asm.Word),
		asm.And.Imm(asm.R1, ^markOnly6),
		asm.JEq.Imm(asm.R8, 0, "store"),
		asm.Or.Imm(asm.R1, markOnly6),
	)
	b.at("store")
	b.add(asm.StoreMem(asm.R0, markFlags, asm.R1, asm.Word))
	b.at("done")
	b.add(
		// The kernel is to take what the program gave it.
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(ctx, optLength, asm.R1, asm.Word),
		asm.Mov.Imm(asm.R0, verdictPass),
		asm.Return(),
	)
}

// markOf leaves the mark of the socket at an offset of the context in R0, or 0.
// It goes to label if there is no socket.
func (b *builder) markOf(socket int16, flags int32, label string) {
	b.add(
		asm.LoadMem(asm.R2, ctx, socket, asm.DWord),
		asm.JEq.Imm(asm.R2, 0, label),
		asm.LoadMapPtr(asm.R1, b.dual.marks.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R4, flags),
		asm.FnSkStorageGet.Call(),
	)
}

// listen puts what begins to listen into one of the maps. A listener that has
// the place of another one, by SO_REUSEPORT, stands for both.
func listen(b *builder) {
	b.add(
		asm.Mov.Reg(ctx, asm.R1),
		asm.LoadMem(asm.R1, ctx, opsOp, asm.Word),
		asm.JNE.Imm(asm.R1, opTCPListen, "done"),
		asm.LoadMem(asm.R1, ctx, opsFamily, asm.Word),
		asm.JNE.Imm(asm.R1, afINET6, "done"),
		asm.Mov.Reg(asm.R1, ctx),
		asm.FnGetNetnsCookie.Call(),
	)
	b.key(asm.R0, opsPort)
	b.markOf(opsSocket, 0, "done")
	b.add(
		asm.JEq.Imm(asm.R0, 0, "unmarked"),
		asm.LoadMem(asm.R1, asm.R0, markFlags, asm.Word),
		asm.And.Imm(asm.R1, markBoth),
		asm.JEq.Imm(asm.R1, 0, "unmarked"),
	)
	b.copy6(asm.RFP, keyIP6, asm.R0, 0)
	b.putListener(b.dual.both)
	b.add(asm.Ja.Label("done"))
	b.at("unmarked")
	b.copy6(asm.RFP, keyIP6, ctx, opsLocal6)
	b.putListener(b.dual.plain)
	b.at("done")
	b.add(asm.Mov.Imm(asm.R0, verdictPass), asm.Return())
}

// key stores a key without its address on the stack. It uses R1.
func (b *builder) key(cookie asm.Register, port int16) {
	b.add(
		asm.StoreMem(asm.RFP, keyCookie, cookie, asm.DWord),
		asm.LoadMem(asm.R1, ctx, port, asm.Word),
		asm.StoreMem(asm.RFP, keyPort, asm.R1, asm.Word),
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.RFP, keyEnd, asm.R1, asm.Word),
	)
}

func (b *builder) putListener(m *ebpf.Map) {
	b.add(
		asm.Mov.Reg(asm.R1, ctx),
		asm.LoadMapPtr(asm.R2, m.FD()),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, keyIP6),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnSockHashUpdate.Call(),
	)
}

// redirect loads the program of the network namespace with that cookie. The
// kernel asks it first, before it looks for listeners itself.
func redirect(d dual, cookie uint64) (*ebpf.Program, error) {
	b := &builder{dual: d}
	find := func(m *ebpf.Map) {
		b.add(
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, keyIP6),
			asm.FnMapLookupElem.Call(),
		)
	}
	b.add(
		asm.Mov.Reg(ctx, asm.R1),
		asm.LoadMem(asm.R1, ctx, lookupFamily, asm.Word),
		asm.JNE.Imm(asm.R1, afINET6, "done"),
		asm.LoadMem(asm.R1, ctx, lookupProtocol, asm.Word),
		asm.JNE.Imm(asm.R1, protocolTCP, "done"),
		asm.LoadImm(asm.R2, int64(cookie), asm.DWord),
	)
	b.key(asm.R2, lookupPort)
	b.copy6(asm.RFP, keyIP6, ctx, lookupLocal6)
	find(d.plain)
	b.add(
		asm.JEq.Imm(asm.R0, 0, "both"),
		asm.Mov.Reg(asm.R1, asm.R0),
		asm.FnSkRelease.Call(),
		asm.Ja.Label("done"),
	)
	b.at("both")
	find(d.both)
	b.add(
		asm.JEq.Imm(asm.R0, 0, "done"),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.Mov.Reg(asm.R1, ctx),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnSkAssign.Call(),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.FnSkRelease.Call(),
	)
	b.at("done")
	b.add(asm.Mov.Imm(asm.R0, verdictPass), asm.Return())
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "volley_redirect", Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup, Instructions: b.Instructions, License: "Apache-2.0",
	})
	if err != nil {
		return nil, fmt.Errorf("load redirect: %w", err)
	}
	return p, nil
}

// Namespace is an open network namespace.
type Namespace interface {
	FD() int
	// Do calls f on a thread in the namespace.
	Do(f func() error) error
}

// Serve lets what listens on :: in a namespace, at endpoints with both
// families, serve both, until Unserve. The name is the caller's for the
// namespace, of lower-case letters, digits and '-'; another namespace of that
// name is served no more. It does nothing where the kernel cannot (before Linux
// 5.15): then such sockets serve IPv6 only. It may be repeated.
func (g *Guard) Serve(name string, ns Namespace) error {
	if !g.dual.ok() {
		return nil
	}
	if err := g.serve(name, ns); err != nil {
		return fmt.Errorf("serve both families on :: in %s: %w", name, err)
	}
	return nil
}

func (g *Guard) serve(name string, ns Namespace) error {
	path := filepath.Join(g.dir, redirectPin+name)
	if on, err := redirects(path, ns); err != nil || on {
		return err
	}
	unlock, err := lock(g.cgroup)
	if err != nil {
		return err
	}
	defer unlock()
	if on, err := redirects(path, ns); err != nil || on {
		return err
	}
	var cookie uint64
	if err := ns.Do(func() (err error) {
		cookie, err = cookieHere()
		return err
	}); err != nil {
		return err
	}
	prog, err := redirect(g.dual, cookie)
	if err != nil {
		return err
	}
	defer prog.Close()
	l, err := link.AttachNetNs(ns.FD(), prog)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, l.Close())
	}
	return errors.Join(l.Pin(path), l.Close())
}

// redirects reports whether the program that is pinned at path is on ns.
func redirects(path string, ns Namespace) (bool, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return false, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(ns.FD(), &st); err != nil {
		return false, fmt.Errorf("number of network namespace: %w", err)
	}
	on := info.NetNs()
	return on != nil && uint64(on.NetnsInode) == st.Ino, nil
}

// cookieHere returns the cookie of the calling thread's network namespace.
func cookieHere() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("cookie of network namespace: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("cookie of network namespace: %w", err)
	}
	return cookie, nil
}

// Unserve takes back what Serve did under all names that gone names, also if
// the namespace is gone, and returns them. It is no error if there is none.
func Unserve(cfg Config, gone func(name string) bool) (names []string, err error) {
	pins, err := filepath.Glob(filepath.Join(bpffs, pinPrefix(cfg.Cgroup)+"*", redirectPin+"*"))
	if err != nil {
		return nil, fmt.Errorf("find programs of network namespaces: %w", err)
	}
	for _, pin := range pins {
		name := strings.TrimPrefix(filepath.Base(pin), redirectPin)
		if !gone(name) {
			continue
		}
		if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return names, fmt.Errorf("remove program of network namespace %s: %w", name, err)
		}
		names = append(names, name)
	}
	return names, nil
}
