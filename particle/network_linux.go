package particle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Network is one network on one node. Its methods may be called concurrently;
// those that change it wait for each other, and for other processes, until
// their context ends: then they return ErrBusy, wrapped.
type Network struct {
	node *Node
	spec Spec
	opts options
	pool *Pool

	mu    sync.Mutex
	steps []Step
}

// Endpoint is one place on a network for a program.
type Endpoint struct {
	Network string `json:"network"`
	Index   int    `json:"index"`
	Name    string `json:"name"`
	// Address and Address6 are its own; one may be invalid.
	Address  netip.Addr `json:"address,omitzero"`
	Address6 netip.Addr `json:"address6,omitzero"`
	// Namespace is the path of its network namespace. Empty with the design
	// Attached, where it is somebody else's.
	Namespace string `json:"namespace"`
	// Cgroup is the absolute path of the cgroup v2 group that holds what runs
	// there to its address, once Network.Enroll has made it. Empty if there is
	// none, because the endpoint has a namespace of its own or because the
	// discipline is another one.
	Cgroup string `json:"cgroup,omitempty"`
}

// Step is a part of Apply and how long it took.
type Step struct {
	// Name is S1 to S6 of thesis 3.1.3 for the parts that the designs Baseline
	// and Shared do for each endpoint, and otherwise "state", "vtep", "links"
	// (bridge, VXLAN device and port), "namespace", "endpoints", "addresses" or
	// "peers".
	Name string
	// Duration is of all endpoints together.
	Duration time.Duration
}

// options are what a network has besides its Spec.
type options struct {
	namespace, ifName string
}

// Option changes how Declare's network is made.
type Option func(*options)

// Interface returns what the node's interface in the namespace that the
// endpoints share is called, or "" if each has its own.
func (nw *Network) Interface() string {
	if !nw.spec.Design.SharesNamespace() {
		return ""
	}
	return nw.ifName()
}

// InNamespace makes the endpoints share the namespace that somebody else has
// pinned at path, with an interface of that name, instead of one that Apply
// makes. Close leaves the namespace. Only for designs that share a namespace.
func InNamespace(path, ifName string) Option {
	return func(o *options) { o.namespace, o.ifName = path, ifName }
}

func (r record) options() options { return options{r.Namespace, r.Interface} }

// Declare returns the network that spec describes, once Apply has made it. The
// error is a *SpecError, wrapped, if there can be none. Declare has no effects.
func (n *Node) Declare(spec Spec, opts ...Option) (*Network, error) {
	spec = spec.WithDefaults()
	if err := spec.Validate(); err != nil {
		return nil, fmt.Errorf("declare network: %w", err)
	}
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	if o.namespace != "" && !spec.Design.SharesNamespace() {
		return nil, fmt.Errorf("declare network: %w", wrong("design", "%s gives each endpoint a namespace of its own, so they cannot share %s", spec.Design, o.namespace))
	}
	return n.network(spec, o), nil
}

// Open returns the network of that name that an Apply has made, or begun to.
// The error is ErrNotFound, wrapped, if there is none.
func (n *Node) Open(name string) (*Network, error) {
	if !ValidName(name) {
		return nil, fmt.Errorf("open network %q: %w", name, ErrNotFound)
	}
	r, err := n.state.load(name)
	if err != nil {
		return nil, fmt.Errorf("open %w", err)
	}
	return n.network(r.Spec, r.options()), nil
}

func (n *Node) network(spec Spec, opts options) *Network {
	nw := &Network{node: n, spec: spec, opts: opts}
	nw.pool = newPool(n.state.pool(spec.Name), spec.Endpoints, nw.endpoint)
	return nw
}

// Spec returns what was declared, with defaults filled in.
func (nw *Network) Spec() Spec { return nw.spec }

// Pool returns the pool of the network's endpoints.
func (nw *Network) Pool() *Pool { return nw.pool }

// Steps returns the parts of the last Apply of this Network value.
func (nw *Network) Steps() []Step {
	nw.mu.Lock()
	defer nw.mu.Unlock()
	return slices.Clone(nw.steps)
}

// Namespace returns the path of the namespace that the endpoints share, or ""
// if each has its own.
func (nw *Network) Namespace() string {
	switch {
	case !nw.spec.Design.SharesNamespace():
		return ""
	case nw.opts.namespace != "":
		return nw.opts.namespace
	}
	return nw.node.namespacePath(nw.label())
}

// Endpoint returns endpoint i, from 0. The error is ErrNotFound, wrapped, if
// there are not so many. Whether Apply has made it is another matter.
func (nw *Network) Endpoint(i int) (Endpoint, error) {
	if i < 0 || i >= nw.spec.Endpoints {
		return Endpoint{}, fmt.Errorf("endpoint %d of %s: %w: it has %d", i, nw.spec.Name, ErrNotFound, nw.spec.Endpoints)
	}
	return nw.endpoint(i), nil
}

func (nw *Network) endpoint(i int) Endpoint {
	ep := Endpoint{
		Network:   nw.spec.Name,
		Index:     i,
		Name:      "e" + strconv.Itoa(i),
		Address:   EndpointAddr(nw.spec.NodePrefix, i),
		Address6:  EndpointAddr(nw.spec.NodePrefix6, i),
		Namespace: nw.Namespace(),
	}
	if nw.spec.Design == Attached {
		return ep
	}
	if ep.Namespace == "" {
		ep.Namespace = nw.node.namespacePath(endpointLabel(nw.label(), i))
	} else if nw.Disciplined() {
		ep.Cgroup = nw.node.cgroupPath(ep)
	}
	return ep
}

// Status returns what is known of the network, or ErrNotFound, wrapped.
func (nw *Network) Status(context.Context) (Status, error) {
	r, err := nw.node.state.load(nw.spec.Name)
	if err != nil {
		return Status{}, err
	}
	return nw.status(r)
}

func (nw *Network) status(r record) (Status, error) {
	owners, err := nw.pool.Owners()
	if err != nil {
		return Status{}, err
	}
	return Status{Spec: r.Spec, State: r.State, Since: r.Since, MTU: r.MTU, Namespace: nw.Namespace(), Peers: r.peers(), Owners: owners}, nil
}

// label is what the segment's namespaces are called and what its lock is.
func (nw *Network) label() string {
	return strings.ReplaceAll(nw.spec.Segment(), "/", "-")
}

// endpointLabel is what an endpoint's own namespace is called. The dot keeps
// it apart from the namespaces that other segments share.
func endpointLabel(label string, i int) string { return label + ".e" + strconv.Itoa(i) }

// Apply makes the network, or makes sure that it is there. What an Apply that
// was killed left is removed first. After an error nothing is left of a
// network that was not there before. It needs CAP_NET_ADMIN and CAP_SYS_ADMIN.
//
// The error is ErrConflict, wrapped, if the node has a network of that name
// with another declaration, peers aside, or if another segment has its VNI; and
// ErrBridgeFull, wrapped, if the design needs more ports than a bridge has.
func (nw *Network) Apply(ctx context.Context) error {
	if err := nw.apply(ctx); err != nil {
		return fmt.Errorf("apply network %s: %w", nw.spec.Name, err)
	}
	return nil
}

func (nw *Network) apply(ctx context.Context) (err error) {
	if err := nw.checkPorts(); err != nil {
		return err
	}
	steps := newStepwatch(nw.node.cfg.hook)
	defer func() {
		nw.mu.Lock()
		nw.steps = steps.list
		nw.mu.Unlock()
	}()
	unlock, err := nw.node.state.lock(ctx, nw.label(), true)
	if err != nil {
		return err
	}
	defer unlock()
	steps.begin()
	v, leave, err := nw.node.enterVTEP(ctx)
	if err != nil {
		return err
	}
	defer leave()
	steps.end("vtep")

	old, err := nw.node.state.load(nw.spec.Name)
	fresh := errors.Is(err, ErrNotFound)
	if err != nil && !fresh {
		return err
	}
	if !fresh {
		if err := nw.sameAs(old); err != nil {
			return err
		}
		if old.State != StateUp {
			// The peers that a control plane told of may have left since.
			if err := nw.demolish(ctx, v, old); err != nil {
				return fmt.Errorf("remove what was left half done: %w", err)
			}
			fresh, old = true, record{}
		} else if whole, err := nw.intact(v); err != nil {
			return err
		} else if !whole {
			// Somebody has removed a part of it.
			if err := nw.demolish(ctx, v, old); err != nil {
				return fmt.Errorf("remove what is left of it: %w", err)
			}
			fresh = true
		}
	}
	r := record{State: StatePartial, Since: time.Now(), Spec: nw.spec, Learned: old.Learned, Namespace: nw.opts.namespace, Interface: nw.opts.ifName}
	if !fresh {
		r.State, r.MTU = StateUp, old.MTU
		r.Leaving = append(old.Leaving, old.Spec.Peers...)
	}
	// Without the claims none of the objects is this network's.
	claimed := false
	defer func() {
		if err == nil || !fresh {
			return
		}
		cleanup := nw.abandon
		if claimed {
			cleanup = func(r record) error { return nw.demolish(context.WithoutCancel(ctx), v, r) }
		}
		if cleanErr := cleanup(r); cleanErr != nil {
			err = errors.Join(err, fmt.Errorf("remove what was made: %w", cleanErr))
		}
	}()
	if fresh {
		if err := nw.node.state.begin(r); err != nil {
			fresh = false // there is nothing of it
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%w: the node has a job of that name of another tenant", ErrConflict)
			}
			return err
		}
		nw.node.cfg.hook("record")
	} else if err := nw.node.state.save(r); err != nil {
		return err
	}
	others, err := nw.neighbours()
	if err != nil {
		return err
	}
	if err := nw.fits(others); err != nil {
		return err
	}
	if err := nw.claim(); err != nil {
		return err
	}
	claimed = true
	steps.end("state")
	if err := nw.make(ctx, v, &r, others, steps); err != nil {
		return err
	}
	r.State, r.Leaving = StateUp, nil
	if err := nw.node.state.save(r); err != nil {
		return err
	}
	steps.end("state")
	return nil
}

// Preflight returns why Apply could not make the network, as far as can be told
// without making anything: ErrBridgeFull, wrapped, or a *SpecError of the
// underlay's address.
func (nw *Network) Preflight() error {
	if err := nw.checkPorts(); err != nil {
		return err
	}
	_, err := nw.mtu()
	return err
}

// sameAs returns ErrConflict, wrapped, if what is there was declared otherwise.
func (nw *Network) sameAs(r record) error {
	is, want := r.Spec, nw.spec
	is.Peers, want.Peers = nil, nil
	switch {
	case is.Segment() != want.Segment():
		return fmt.Errorf("%w: the node has a job of that name: %s", ErrConflict, is.Segment())
	case !reflect.DeepEqual(is, want):
		return fmt.Errorf("%w: it is there with another declaration: remove it first", ErrConflict)
	case r.options() != nw.opts:
		return fmt.Errorf("%w: it is there in another namespace: remove it first", ErrConflict)
	}
	return nil
}

// claim makes the segment's number and label its own on this node.
func (nw *Network) claim() error {
	segment := nw.spec.Segment()
	if err := nw.node.state.claim(nw.node.state.vni(nw.spec.VNI), segment); err != nil {
		return fmt.Errorf("take VNI %d for %s: %w", nw.spec.VNI, segment, err)
	}
	if err := nw.node.state.claim(nw.node.state.label(nw.label()), segment); err != nil {
		return fmt.Errorf("take the name %s for %s: %w", nw.label(), segment, err)
	}
	return nil
}

// abandon removes the record of a network of which nothing was made.
func (nw *Network) abandon(r record) error {
	others, err := nw.neighbours()
	if err != nil {
		return err
	}
	return nw.release(r, len(others) == 0)
}

// release forgets the network, and its segment if that has no other.
func (nw *Network) release(r record, whole bool) error {
	state, segment := nw.node.state, r.Spec.Segment()
	if err := state.forget(r.Spec.Name); err != nil {
		return err
	}
	if whole {
		if err := errors.Join(state.unclaim(state.vni(r.Spec.VNI), segment), state.unclaim(state.label(nw.label()), segment)); err != nil {
			return err
		}
	}
	nw.node.cfg.hook("close claims")
	return state.remove(r.Spec.Name)
}

// neighbours returns the records of the segment's other networks.
func (nw *Network) neighbours() ([]record, error) {
	if nw.spec.Isolation != IsolateTenant {
		return nil, nil
	}
	all, err := nw.node.state.all()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(r record) bool {
		return r.Spec.Name == nw.spec.Name || r.Spec.Segment() != nw.spec.Segment()
	}), nil
}

// fits returns ErrConflict, wrapped, if the network does not go with another
// one of its segment.
func (nw *Network) fits(others []record) error {
	for _, r := range others {
		conflict := func(format string, args ...any) error {
			return fmt.Errorf("%w: job %s of the same tenant %s", ErrConflict, r.Spec.Name, fmt.Sprintf(format, args...))
		}
		s := r.Spec
		switch {
		case s.VNI != nw.spec.VNI:
			return conflict("has VNI %d", s.VNI)
		case s.Design != nw.spec.Design:
			return conflict("has the design %s", s.Design)
		case s.Design != AnyIP && s.Design != Consolidated:
			return conflict("is on this node, and with the design %s there can be one: use %s or %s", s.Design, AnyIP, Consolidated)
		case s.Underlay != nw.spec.Underlay:
			return conflict("has another underlay")
		case s.Prefix6.IsValid() != nw.spec.Prefix6.IsValid():
			return conflict("has not the same address families")
		case r.options() != nw.opts:
			return conflict("has another namespace")
		case overlap(s.NodePrefix, nw.spec.NodePrefix) || overlap(s.NodePrefix6, nw.spec.NodePrefix6):
			return conflict("has addresses of the same prefix")
		}
	}
	return nil
}

// Close removes the network, kills what runs in its endpoints' groups, and
// forgets who has its endpoints. It is no error if there is none. It also
// removes what an interrupted Apply or Close left.
func (nw *Network) Close(ctx context.Context) error {
	if err := nw.close(ctx); err != nil {
		return fmt.Errorf("remove network %s: %w", nw.spec.Name, err)
	}
	return nil
}

func (nw *Network) close(ctx context.Context) error {
	unlock, err := nw.node.state.lock(ctx, nw.label(), true)
	if err != nil {
		return err
	}
	defer unlock()
	return nw.closeLocked(ctx)
}

// closeLocked is close for whoever holds the segment's lock.
func (nw *Network) closeLocked(ctx context.Context) error {
	r, err := nw.node.state.load(nw.spec.Name)
	if errors.Is(err, ErrNotFound) || err == nil && r.Spec.Segment() != nw.spec.Segment() {
		return nw.dropLock()
	}
	if err != nil {
		return err
	}
	v, leave, err := nw.node.enterVTEP(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if err := nw.demolish(ctx, v, r); err != nil {
		return err
	}
	return nw.dropLock()
}

// dropLock removes the lock's file if nobody else of the segment needs it.
func (nw *Network) dropLock() error {
	others, err := nw.neighbours()
	if err != nil || len(others) > 0 {
		return err
	}
	return nw.node.state.dropLock(nw.label())
}

// SetPeers makes peers what a control plane says, in place of what it said
// before. Peers of the Spec stay, and go before others at the same underlay
// address. The error is a *SpecError, wrapped, if a peer does not fit, and
// ErrNotFound, wrapped, if there is no network.
func (nw *Network) SetPeers(ctx context.Context, peers []Peer) error {
	if err := nw.setPeers(ctx, peers); err != nil {
		return fmt.Errorf("set peers of network %s: %w", nw.spec.Name, err)
	}
	return nil
}

func (nw *Network) setPeers(ctx context.Context, peers []Peer) error {
	if len(peers) > 0 && !nw.spec.Underlay.Address.IsValid() {
		return wrong("underlay.address", "is missing: with peers, give the address by which they reach this node")
	}
	if err := nw.spec.CheckPeers(peers); err != nil {
		return err
	}
	v, r, leave, err := nw.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if r.State != StateUp {
		return fmt.Errorf("network %s: %w: it is not up", nw.spec.Name, ErrNotFound)
	}
	others, err := nw.neighbours()
	if err != nil {
		return err
	}
	have := nw.wiring(r, others)
	left := r.Leaving
	r.Leaving = append(slices.Clone(left), r.Learned...)
	r.Learned = slices.Clone(peers)
	want := nw.wiring(r, others)
	if len(left) == 0 && have.equal(want) {
		// Only what people are told has changed, if anything.
		r.Leaving = nil
		return nw.node.state.save(r)
	}
	if err := nw.node.state.save(r); err != nil {
		return err
	}
	stale := wireAll(r.Spec, left)
	maps.Copy(stale.routes, have.routes)
	maps.Copy(stale.neighbours, have.neighbours)
	maps.Copy(stale.forwards, have.forwards)
	if err := nw.rewire(ctx, v, nil, have, stale, want); err != nil {
		return err
	}
	r.Leaving = nil
	return nw.node.state.save(r)
}

// Processes returns the ids of all processes in the groups of the network's
// endpoints.
func (nw *Network) Processes(context.Context) ([]int, error) {
	tree, err := nw.node.cgroups()
	if errors.Is(err, ErrUnsupported) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return tree.processes(nw.spec.Name)
}

// stepwatch measures the parts of Apply.
type stepwatch struct {
	list []Step
	last time.Time
	hook func(string)
}

func newStepwatch(hook func(string)) *stepwatch { return &stepwatch{hook: hook} }

func (w *stepwatch) begin() { w.last = time.Now() }

// end adds the time since the last end to a step.
func (w *stepwatch) end(name string) {
	now := time.Now()
	i := slices.IndexFunc(w.list, func(s Step) bool { return s.Name == name })
	if i < 0 {
		i = len(w.list)
		w.list = append(w.list, Step{Name: name})
	}
	w.list[i].Duration += now.Sub(w.last)
	w.hook(name)
	w.last = time.Now()
}

// cgroupPath is where an endpoint's group is.
func (n *Node) cgroupPath(ep Endpoint) string {
	tree, err := n.cgroups()
	if err != nil {
		return ""
	}
	return filepath.Clean(tree.path(ep.Network, ep.Name))
}
