package particle

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/volley-run/volley/particle/bpf"
	"github.com/volley-run/volley/particle/rtnl"
)

// Where a node keeps things unless told otherwise.
const (
	DefaultStateDir     = "/run/volley/net"
	DefaultNamespaceDir = "/run/netns"
)

// NodeConfig says how a node differs from the only one of its machine. The
// zero value is that one.
type NodeConfig struct {
	// Name tells nodes of one machine apart, as tests have them. Named like a
	// job; "vtep" is taken. Empty with a StateDir of its own: a name that follows
	// from that, so that GC of one does not take what belongs to another.
	Name string
	// StateDir holds what is known of the networks. Nodes may not share it.
	// Empty: DefaultStateDir. It may be lost when the machine restarts, as the
	// networks are.
	StateDir string
	// NamespaceDir is where namespaces are pinned. Empty: DefaultNamespaceDir,
	// where `ip netns` looks.
	NamespaceDir string
	// CgroupParent is the cgroup v2 group that the endpoints' groups are below:
	// a path or, if not absolute, one below the root of the hierarchy. Empty:
	// "volley-net", with ".Name" behind it if there is one.
	CgroupParent string
	// Logger gets what GC removes and what goes wrong on the way out. nil: nobody.
	Logger *slog.Logger

	// hook, for tests, is called before and after each thing that Apply does.
	hook func(step string)
}

// Node is this machine's part of all networks. Its methods may be called
// concurrently, and by several processes on one state directory.
type Node struct {
	cfg NodeConfig
	// given is the name that it was given, by which other nodes know it; that
	// in cfg may only follow from the state directory.
	given string
	log   *slog.Logger
	state stateDir
	// host speaks to the namespace in which OpenNode was called: the underlay's.
	host *rtnl.Conn

	mu      sync.Mutex
	vtep    *place // of the last use; it may have been replaced since
	tree    *cgroups
	guard   *bpf.Guard
	guarded error // why there is no guard; errGuardUntried before the first try
	probed  error // the same of whether there could be one
}

// place is a namespace and a socket in it.
type place struct {
	ns   *rtnl.Namespace
	conn *rtnl.Conn
}

func (p *place) close() error { return errors.Join(p.conn.Close(), p.ns.Close()) }

// openPlace opens the namespace that is pinned at path.
func openPlace(path string) (*place, error) {
	ns, err := rtnl.Open(path)
	if err != nil {
		return nil, err
	}
	conn, err := ns.Dial()
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return &place{ns, conn}, nil
}

// noNamespace reports whether an error says that there is no namespace any more.
func noNamespace(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, rtnl.ErrNotNamespace)
}

// OpenNode opens the node whose underlay is in the calling thread's network
// namespace. It makes nothing. The caller closes it.
func OpenNode(cfg NodeConfig) (*Node, error) {
	if cfg.Name != "" && (!ValidName(cfg.Name) || cfg.Name == "vtep") {
		return nil, fmt.Errorf("open node: the name %q must be lower-case letters, digits and '-', at most 40, and not \"vtep\"", cfg.Name)
	}
	if cfg.StateDir == "" {
		cfg.StateDir = DefaultStateDir
	}
	given := cfg.Name
	if cfg.Name == "" && cfg.StateDir != DefaultStateDir {
		dir, err := filepath.Abs(cfg.StateDir)
		if err != nil {
			return nil, fmt.Errorf("open node: %w", err)
		}
		h := fnv.New32a()
		io.WriteString(h, dir)
		cfg.StateDir, cfg.Name = dir, fmt.Sprintf("s%08x", h.Sum32())
	}
	if cfg.NamespaceDir == "" {
		cfg.NamespaceDir = DefaultNamespaceDir
	}
	if cfg.CgroupParent == "" {
		cfg.CgroupParent = dotted("volley-net", cfg.Name)
	}
	if cfg.hook == nil {
		cfg.hook = func(string) {}
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	host, err := rtnl.Dial()
	if err != nil {
		return nil, fmt.Errorf("open node: %w", err)
	}
	return &Node{cfg: cfg, given: given, log: log, state: stateDir(cfg.StateDir), host: host, guarded: errGuardUntried, probed: errGuardUntried}, nil
}

// Close closes the node's sockets. Networks stay as they are.
func (n *Node) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	err := n.host.Close()
	if n.vtep != nil {
		err = errors.Join(err, n.vtep.close())
		n.vtep = nil
	}
	if n.guard != nil {
		err = errors.Join(err, n.guard.Close())
		n.guard, n.guarded = nil, errGuardUntried
	}
	if err != nil {
		return fmt.Errorf("close node: %w", err)
	}
	return nil
}

func dotted(name, node string) string {
	if node == "" {
		return name
	}
	return name + "." + node
}

// vtepPath is where the VTEP's namespace is pinned.
func (n *Node) vtepPath() string {
	return filepath.Join(n.cfg.NamespaceDir, dotted("volley-vtep", n.cfg.Name))
}

// namespacePath is where the namespace of that name, which Network.label
// makes, is pinned.
func (n *Node) namespacePath(label string) string {
	if n.cfg.Name != "" {
		label = n.cfg.Name + "." + label
	}
	return filepath.Join(n.cfg.NamespaceDir, "volley-"+label)
}

// enterVTEP returns the node's VTEP, which it makes if it is not there, locked
// against removal until leave is called. Whoever changes a network holds it.
func (n *Node) enterVTEP(ctx context.Context) (v *place, leave func(), err error) {
	for {
		leave, err := n.state.lock(ctx, vtepLock, false)
		if err != nil {
			return nil, nil, fmt.Errorf("use the VTEP: %w", err)
		}
		v, err := n.openVTEP()
		if err == nil {
			return v, leave, nil
		}
		leave()
		if !noNamespace(err) {
			return nil, nil, fmt.Errorf("use the VTEP: %w", err)
		}
		if err := n.makeVTEP(ctx); err != nil {
			return nil, nil, fmt.Errorf("make the VTEP: %w", err)
		}
	}
}

// openVTEP opens the VTEP that is there, once for all uses of the process.
func (n *Node) openVTEP() (*place, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.vtep != nil {
		if n.vtep.ns.Same(n.vtepPath()) {
			return n.vtep, nil
		}
		old := n.vtep
		n.vtep = nil
		if err := old.close(); err != nil {
			return nil, err
		}
	}
	v, err := openPlace(n.vtepPath())
	if err != nil {
		return nil, err
	}
	n.vtep = v
	return v, nil
}

func (n *Node) makeVTEP(ctx context.Context) error {
	unlock, err := n.state.lock(ctx, vtepLock, true)
	if err != nil {
		return err
	}
	defer unlock()
	if err := n.prepareNamespaceDir(); err != nil {
		return err
	}
	n.cfg.hook("before vtep")
	ns, err := rtnl.Create(n.vtepPath(), func() error {
		// It only passes frames on, and holds no address by which to be reached.
		if err := errors.Join(noIPv6(), rtnl.SetSysctl("ipv4/ip_forward", "0")); err != nil {
			return err
		}
		return takeNumber(ctx)
	})
	if errors.Is(err, rtnl.ErrExists) {
		return nil // somebody was faster
	}
	if err != nil {
		return err
	}
	n.cfg.hook("vtep")
	return ns.Close()
}

// takeNumber makes the calling thread's namespace, a new one, give links other
// numbers than those that are made in other new namespaces at the same time:
// the kernel takes up to a second to let packets through a veth pair whose ends
// have the same number.
func takeNumber(ctx context.Context) error {
	c, err := rtnl.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	var b rtnl.Batch
	b.AddBridge(rtnl.LinkConfig{Name: "idle"})
	return c.Do(ctx, &b)
}

// noIPv6 switches IPv6 off in the calling thread's namespace, if there is any.
func noIPv6() error {
	return ifThere(rtnl.SetSysctl("ipv6/conf/all/disable_ipv6", "1"))
}

// ifThere forgives that a kernel has no such parameter.
func ifThere(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (n *Node) prepareNamespaceDir() error {
	if n.cfg.NamespaceDir == DefaultNamespaceDir {
		return rtnl.PrepareDir(n.cfg.NamespaceDir)
	}
	return os.MkdirAll(n.cfg.NamespaceDir, 0o755)
}

// List returns all networks of the node, by name.
func (n *Node) List(ctx context.Context) ([]Status, error) {
	records, err := n.state.all()
	if err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	list := make([]Status, 0, len(records))
	for _, r := range records {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("list networks: %w", err)
		}
		s, err := n.network(r.Spec, r.options()).status(r)
		if err != nil {
			return nil, fmt.Errorf("list networks: %w", err)
		}
		list = append(list, s)
	}
	return list, nil
}

// State says how far a network is.
type State string

// The states of a network.
const (
	// StateUp is after Apply.
	StateUp State = "up"
	// StatePartial is during Apply and Close, and after those that were killed.
	StatePartial State = "partial"
)

// Status is what a node knows of one of its networks.
type Status struct {
	Spec  Spec      `json:"spec"`
	State State     `json:"state"`
	Since time.Time `json:"since"` // of the last Apply
	// MTU is the largest packet in bytes that endpoints can send.
	MTU int `json:"mtu,omitempty"`
	// Namespace is as Network.Namespace says.
	Namespace string `json:"namespace,omitempty"`
	// Peers are those of the Spec and those of the control plane.
	Peers []Peer `json:"peers,omitempty"`
	// Owners says who has which endpoint of the pool.
	Owners map[string]Endpoint `json:"owners,omitempty"`
}
