//go:build linux

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/volley-run/volley/internal/sys"
)

// The versions are part of the pins' names. Entries of another form get another
// number: the set of another version is removed, and all endpoints have to be
// enrolled again. Programs of another version take the place of those that are
// there, one after the other, and what they hold stays held; those on network
// namespaces stay.
const (
	version         = 1
	programsVersion = 2
)

const (
	bpffs = "/sys/fs/bpf"
	// mapPin is pinned when all programs are, so that it says that the set is
	// whole.
	mapPin = "endpoints"
	// programsPin, with the version behind it, is a directory that says of which
	// version all programs are.
	programsPin = "programs-"
	maxEntries  = 1 << 18
)

// Config says where a set of programs is.
type Config struct {
	// Cgroup is the absolute path of the parent group, on cgroup v2.
	Cgroup string
	// Depth is how many levels below it the groups of endpoints are.
	Depth int
}

// Guard is a set of programs on a parent group. Its methods may be called
// concurrently.
type Guard struct {
	endpoints   *ebpf.Map
	dual        dual
	cgroup, dir string
}

// Entry says which addresses a group has. At least one must be valid.
type Entry struct {
	CgroupID          uint64
	Address, Address6 netip.Addr
}

// Open returns the set on a parent group, which must exist, and attaches it
// there if it is not yet. The set stays until Remove, or until the group is
// removed. The caller closes the Guard.
func Open(cfg Config) (*Guard, error) {
	g, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("attach programs to %s: %w", cfg.Cgroup, err)
	}
	return g, nil
}

func open(cfg Config) (*Guard, error) {
	level, err := levelOf(cfg)
	if err != nil {
		return nil, err
	}
	if err := mountBPF(); err != nil {
		return nil, err
	}
	// The BPF file system has no locks, but the control group has.
	unlock, err := lock(cfg.Cgroup)
	if err != nil {
		return nil, err
	}
	defer unlock()
	dir, err := pinDir(cfg.Cgroup)
	if err != nil {
		return nil, err
	}
	g := &Guard{cgroup: cfg.Cgroup, dir: dir}
	g.endpoints, err = ebpf.LoadPinnedMap(filepath.Join(dir, mapPin), nil)
	whole := err == nil
	if !whole && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if !whole {
		// What is there is of a group of that name that is gone, of another
		// version, or of a process that died while it made the set.
		if err := removePins(cfg.Cgroup); err != nil {
			return nil, err
		}
	}
	if err := g.attach(level, whole); err != nil {
		err = errors.Join(err, g.Close())
		if !whole {
			err = errors.Join(err, removePins(cfg.Cgroup))
		}
		return nil, err
	}
	return g, nil
}

// lock keeps others from changing the set on a group.
func lock(cgroup string) (unlock func(), err error) {
	l, err := sys.WaitForLock(cgroup)
	if err != nil {
		return nil, err
	}
	return func() { l.Close() }, nil
}

// attach loads, attaches and pins the set, or what a set of another version of
// the programs has not got.
func (g *Guard) attach(level int32, whole bool) (err error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	if !whole {
		if err := os.MkdirAll(g.dir, 0o700); err != nil {
			return err
		}
		g.endpoints, err = ebpf.NewMap(&ebpf.MapSpec{
			Name: "volley_net", Type: ebpf.Hash, KeySize: 8, ValueSize: entrySize, MaxEntries: maxEntries, Flags: unix.BPF_F_NO_PREALLOC,
		})
		if err != nil {
			return fmt.Errorf("make map: %w", err)
		}
	}
	current := filepath.Join(g.dir, programsPin+strconv.Itoa(programsVersion))
	if _, err := os.Stat(current); err == nil {
		g.dual, err = openDual(g.dir)
		return err
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if g.dual, err = newDual(g.dir); err != nil {
		return err
	}
	var all []program
	if g.dual.ok() {
		// What bind6 marks must be seen when it listens.
		for _, p := range dualPrograms() {
			all = append(all, p)
		}
	}
	all = append(all, programs()...)
	for _, p := range all {
		if err := p.attachTo(g, level); err != nil {
			return fmt.Errorf("program %s: %w", p.name, err)
		}
	}
	if !whole {
		if err := g.endpoints.Pin(filepath.Join(g.dir, mapPin)); err != nil {
			return err
		}
	}
	others, err := filepath.Glob(filepath.Join(g.dir, programsPin+"*"))
	if err != nil {
		return err
	}
	for _, other := range others {
		if err := os.Remove(other); err != nil {
			return err
		}
	}
	return os.Mkdir(current, 0o700)
}

// attachTo attaches a program, in the place of that of another version.
func (p program) attachTo(g *Guard, level int32) error {
	prog, err := p.load(g.endpoints, level, g.dual)
	if err != nil {
		return err
	}
	defer prog.Close()
	path := filepath.Join(g.dir, p.name)
	old, err := link.LoadPinnedLink(path, nil)
	if err == nil {
		if err := errors.Join(old.Update(prog), old.Close()); err != nil {
			return fmt.Errorf("replace: %w", err)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: g.cgroup, Attach: p.attach, Program: prog})
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	// The pin keeps it attached.
	return errors.Join(l.Pin(path), l.Close())
}

// load loads a program. Those without endpoints need no map of them.
func (p program) load(m *ebpf.Map, level int32, d dual) (*ebpf.Program, error) {
	b := &builder{level: level, dual: d}
	if m != nil {
		b.mapFD = m.FD()
	}
	p.code(b)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "volley_" + p.name, Type: p.kind, AttachType: p.attach, Instructions: b.Instructions, License: "Apache-2.0",
	})
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	return prog, nil
}

// Put says which addresses groups have, all in one call of the kernel.
func (g *Guard) Put(entries []Entry) error {
	if len(entries) == 0 {
		return nil
	}
	keys, values := make([]uint64, len(entries)), make([][entrySize]byte, len(entries))
	for i, e := range entries {
		keys[i] = e.CgroupID
		var has uint32
		if e.Address.Is4() {
			a := e.Address.As4()
			copy(values[i][entryIP4:], a[:])
			has |= has4
		}
		if e.Address6.Is6() && !e.Address6.Is4In6() {
			a := e.Address6.As16()
			copy(values[i][entryIP6:], a[:])
			has |= has6
		}
		if has == 0 {
			return fmt.Errorf("put entry of group %d: it has no address", e.CgroupID)
		}
		binary.NativeEndian.PutUint32(values[i][entryHas:], has)
	}
	if _, err := g.endpoints.BatchUpdate(keys, values, nil); err != nil {
		return fmt.Errorf("put entries: %w", err)
	}
	return nil
}

// Delete forgets groups. It is no error if one is not known.
func (g *Guard) Delete(groups []uint64) error {
	for _, id := range groups {
		if err := g.endpoints.Delete(id); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete entry of group %d: %w", id, err)
		}
	}
	return nil
}

// Close closes the Guard. The set stays.
func (g *Guard) Close() error {
	return errors.Join(g.endpoints.Close(), g.dual.close())
}

// Remove detaches and removes the set on a parent group, also if that is gone.
// It is no error if there is none.
func Remove(cfg Config) error {
	if err := removePins(cfg.Cgroup); err != nil {
		return fmt.Errorf("remove programs of %s: %w", cfg.Cgroup, err)
	}
	return nil
}

// Probe returns why there can be no Guard here, or nil.
func Probe() error {
	if err := probe(); err != nil {
		return fmt.Errorf("programs on control groups: %w", err)
	}
	return nil
}

func probe() error {
	if err := mountBPF(); err != nil {
		return err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: entrySize, MaxEntries: 1})
	if err != nil {
		return err
	}
	defer m.Close()
	for _, p := range programs() {
		prog, err := p.load(m, 1, dual{})
		if err != nil {
			return fmt.Errorf("program %s: %w", p.name, err)
		}
		prog.Close()
	}
	return nil
}

// CgroupID returns the number by which the kernel knows a control group.
func CgroupID(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("number of control group %s: %w", path, err)
	}
	return st.Ino, nil
}

// levelOf returns at which level of the hierarchy the groups of endpoints are;
// the root has level 0.
func levelOf(cfg Config) (int32, error) {
	if !filepath.IsAbs(cfg.Cgroup) {
		return 0, errors.New("the path is not absolute")
	}
	level := cfg.Depth
	for dir := filepath.Clean(cfg.Cgroup); ; dir = filepath.Dir(dir) {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			return 0, err
		}
		if st.Type != unix.CGROUP2_SUPER_MAGIC {
			if level == cfg.Depth {
				return 0, errors.New("it is not on cgroup v2")
			}
			return int32(level - 1), nil // one up was the root
		}
		level++
	}
}

// mountBPF makes sure that there is a BPF file system.
func mountBPF() error {
	var st unix.Statfs_t
	if err := unix.Statfs(bpffs, &st); err != nil {
		return fmt.Errorf("%s: %w", bpffs, err)
	}
	if st.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	if err := unix.Mount("bpf", bpffs, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount %s: %w", bpffs, err)
	}
	return nil
}

// pinDir returns where the set on a group is pinned. It names the group's
// number, as another one may come under the same path.
func pinDir(cgroup string) (string, error) {
	id, err := CgroupID(cgroup)
	if err != nil {
		return "", err
	}
	return filepath.Join(bpffs, pinPrefix(cgroup)+strconv.FormatUint(id, 10)+"-v"+strconv.Itoa(version)), nil
}

// pinPrefix begins the names of all sets that were ever on a group of that path.
func pinPrefix(cgroup string) string {
	// The BPF file system takes no dots in names.
	name := strings.NewReplacer("-", "-h", ".", "-d", "/", "-s").Replace(strings.TrimPrefix(filepath.Clean(cgroup), "/"))
	return "volley-" + name + "-n"
}

// removePins removes all sets that are or were on a group of that path, which
// detaches them.
func removePins(cgroup string) error {
	entries, err := os.ReadDir(bpffs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), pinPrefix(cgroup)) {
			if err := os.RemoveAll(filepath.Join(bpffs, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
