package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/particle"
)

// Processes is one measurement of a burst: from nothing until each process has
// spoken with a server on the other node, from its own address.
type Processes struct {
	// Design is empty where the processes have no network but the node's own,
	// and the server is there too.
	Design particle.Design
	Count  int
	// Network is making the network, of which Groups is putting the endpoints
	// under their discipline. Total includes starting the processes and what
	// they say.
	Network, Groups, Total time.Duration
}

const (
	serverPort = 4000
	// startsAtOnce is how many processes are being started at a time, a few for
	// each of the machine's cores.
	startsAtOnce = 8
	// burstTime is how long the last process may take.
	burstTime = 15 * time.Minute
)

// greet is what each process does: it connects, says its number, and stays. A
// thousand that ask at once for an Ethernet address, as with a namespace each,
// do not all get an answer in time, and try again.
const greet = `until { exec 3<>"/dev/tcp/$1/$2"; } 2>/dev/null; do :; done; echo "$3" >&3 && read -r _ <&3`

// Processes starts count processes on the first node, each in pid, mount, IPC
// and UTS namespaces and a control group of its own, at an endpoint of its own.
// It needs bash, and a cluster of at least two nodes. If design is empty there
// is no network. It is an error if a process shows another address than its own.
func (c *Cluster) Processes(ctx context.Context, design particle.Design, count int) (p Processes, err error) {
	ctx, cancel := context.WithTimeout(ctx, burstTime)
	defer cancel()
	p = Processes{Design: design, Count: count}
	if err := c.warm(ctx); err != nil {
		return p, err
	}
	var places []particle.Endpoint
	target := particle.Endpoint{Namespace: c.nodes[0].path(), Address: c.nodes[0].address}
	var nw *particle.Network
	if design != "" {
		all, err := c.declare(Network{Design: design, Endpoints: count})
		if err != nil {
			return p, err
		}
		// The other node needs no more than the server's endpoint.
		server := all[1].Spec()
		server.Endpoints = 1
		if all[1], err = c.nodes[1].Declare(server); err != nil {
			return p, err
		}
		nw = all[0]
		defer func() { err = errors.Join(err, nw.Close(context.WithoutCancel(ctx))) }()
		far, err := c.farEnd(ctx, all[1])
		if err != nil {
			return p, err
		}
		defer func() { err = errors.Join(err, all[1].Close(context.WithoutCancel(ctx))) }()
		target = far
	}
	groups, err := c.ownGroups(count, nw == nil || !design.SharesNamespace())
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, groups.remove()) }()
	if design != "" && !design.SharesNamespace() {
		restore, full := roomForNeighbours()
		if full != nil {
			return p, full
		}
		defer func() { err = errors.Join(err, restore()) }()
	}
	server, err := newGreeter(target)
	if err != nil {
		return p, err
	}
	defer server.close()

	start := time.Now()
	if nw != nil {
		if err := nw.Apply(ctx); err != nil {
			return p, err
		}
		for i := range count {
			ep, err := nw.Endpoint(i)
			if err != nil {
				return p, err
			}
			places = append(places, ep)
		}
		applied := time.Now()
		if err := nw.Enroll(ctx, places...); err != nil {
			return p, err
		}
		p.Groups, p.Network = time.Since(applied), time.Since(start)
	} else {
		for range count {
			places = append(places, target)
		}
	}
	b := &burst{places: places, groups: groups, target: target.Address, ended: make(chan error, count)}
	defer b.end()
	if err := b.start(ctx); err != nil {
		return p, err
	}
	if err := server.await(ctx, places, b.ended); err != nil {
		return p, err
	}
	p.Total = time.Since(start)
	return p, nil
}

const (
	neighbourLimit = "/proc/sys/net/ipv4/neigh/default/gc_thresh3"
	// manyNeighbours is enough for two entries for each of the most processes.
	manyNeighbours = 32 << 10
)

// roomForNeighbours raises the limit of the kernel's neighbour table, which all
// namespaces share, until restore is called. Each endpoint with a namespace of
// its own takes an entry on its node and one on the node that it speaks with,
// and here the nodes have one kernel, which by default ends at 1,024. Where the
// limit cannot be seen, in a container, nothing happens.
func roomForNeighbours() (restore func() error, err error) {
	text, err := os.ReadFile(neighbourLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return func() error { return nil }, nil
	}
	if err != nil {
		return nil, err
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", neighbourLimit, err)
	}
	if limit >= manyNeighbours {
		return func() error { return nil }, nil
	}
	return func() error { return os.WriteFile(neighbourLimit, text, 0) }, os.WriteFile(neighbourLimit, []byte(strconv.Itoa(manyNeighbours)), 0)
}

// path is where the node's namespace is pinned.
func (n *node) path() string {
	return fmt.Sprintf("/proc/self/fd/%d", n.ns.FD())
}

// farEnd makes the second node's network, with the server's endpoint.
func (c *Cluster) farEnd(ctx context.Context, nw *particle.Network) (particle.Endpoint, error) {
	if err := nw.Apply(ctx); err != nil {
		return particle.Endpoint{}, err
	}
	return nw.Endpoint(0)
}

// groups are control groups for processes whose endpoints have none. Making
// them is not measured.
type groups struct {
	parent string
	paths  []string
}

// ownGroups makes groups, if they are wanted, and where there are cgroups v2.
func (c *Cluster) ownGroups(count int, wanted bool) (*groups, error) {
	mounts, err := sys.Mounts()
	if err != nil {
		return nil, err
	}
	root, there := sys.Cgroup2(mounts)
	if !wanted || !there {
		return &groups{}, nil
	}
	g := &groups{parent: filepath.Join(root, fmt.Sprintf("volley-bench%d-%d", os.Getpid(), c.next))}
	if err := os.Mkdir(g.parent, 0o755); err != nil {
		return nil, err
	}
	for i := range count {
		path := filepath.Join(g.parent, fmt.Sprint(i))
		if err := os.Mkdir(path, 0o755); err != nil {
			return nil, errors.Join(err, g.remove())
		}
		g.paths = append(g.paths, path)
	}
	return g, nil
}

func (g *groups) remove() error {
	if g.parent == "" {
		return nil
	}
	var all []error
	for _, path := range append(g.paths, g.parent) {
		all = append(all, removeGroup(path))
	}
	return errors.Join(all...)
}

// removeGroup removes a group, whose last process may still be on its way out.
func removeGroup(path string) (err error) {
	for range 500 {
		if err = os.Remove(path); !errors.Is(err, syscall.EBUSY) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// burst is the processes.
type burst struct {
	places []particle.Endpoint
	groups *groups
	target netip.Addr
	all    []*exec.Cmd
	// running are those that wait for them.
	running sync.WaitGroup
	ended   chan error // of processes, each once
}

func (b *burst) start(ctx context.Context) error {
	b.all = make([]*exec.Cmd, len(b.places))
	next, results := make(chan int), make(chan error, startsAtOnce)
	for range startsAtOnce {
		go func() {
			var err error
			for i := range next {
				if err == nil {
					err = b.startOne(i)
				}
			}
			results <- err
		}()
	}
	for i := range b.places {
		if ctx.Err() != nil {
			break
		}
		next <- i
	}
	close(next)
	all := []error{ctx.Err()}
	for range startsAtOnce {
		all = append(all, <-results)
	}
	return errors.Join(all...)
}

func (b *burst) startOne(i int) error {
	place := b.places[i]
	group := place.Cgroup
	if i < len(b.groups.paths) {
		group = b.groups.paths[i]
	}
	cmd := exec.Command("bash", "-c", greet, "bash", b.target.String(), fmt.Sprint(serverPort), fmt.Sprint(i))
	cmd.Stderr = io.Discard
	attr := &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
	}
	cmd.SysProcAttr = attr
	if group != "" {
		dir, err := os.Open(group)
		if err != nil {
			return err
		}
		defer dir.Close()
		attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
	}
	err := sys.OnThread(func() error {
		if err := sys.EnterNetwork(place.Namespace); err != nil {
			return err
		}
		return cmd.Start()
	})
	if err != nil {
		return fmt.Errorf("start process %d: %w", i, err)
	}
	b.all[i] = cmd
	b.running.Go(func() { b.ended <- cmd.Wait() })
	return nil
}

// end kills the processes and waits for them.
func (b *burst) end() {
	for _, cmd := range b.all {
		if cmd != nil {
			_ = cmd.Process.Kill() // it may have ended
		}
	}
	b.running.Wait()
}

// greeter is the server to which the processes say who they are.
type greeter struct {
	listener net.Listener
	came     chan greeting
	done     chan struct{}
}

// greeting is what a process says, and where it says it from.
type greeting struct {
	number int
	from   netip.Addr
	conn   net.Conn
	err    error
}

func newGreeter(at particle.Endpoint) (*greeter, error) {
	g := &greeter{came: make(chan greeting), done: make(chan struct{})}
	err := inNamespace(at.Namespace, func() (err error) {
		g.listener, err = net.Listen("tcp", netip.AddrPortFrom(at.Address, serverPort).String())
		return err
	})
	if err != nil {
		return nil, err
	}
	go g.serve()
	return g, nil
}

func (g *greeter) serve() {
	for {
		c, err := g.listener.Accept()
		if err != nil {
			return
		}
		go func() {
			h := greeting{conn: c, from: c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()}
			_, h.err = fmt.Fscan(c, &h.number)
			select {
			case g.came <- h:
			case <-g.done:
				c.Close()
			}
		}()
	}
}

// await returns when all have spoken, each from its place. None may end.
func (g *greeter) await(ctx context.Context, places []particle.Endpoint, ended <-chan error) error {
	seen := make([]bool, len(places))
	for n := range places {
		select {
		case h := <-g.came:
			defer h.conn.Close()
			switch {
			case h.err != nil:
				return fmt.Errorf("a process at %s said nothing: %w", h.from, h.err)
			case h.number < 0 || h.number >= len(places) || seen[h.number]:
				return fmt.Errorf("a process at %s calls itself %d", h.from, h.number)
			case h.from != places[h.number].Address:
				return fmt.Errorf("process %d shows %s instead of %s", h.number, h.from, places[h.number].Address)
			}
			seen[h.number] = true
		case err := <-ended:
			return fmt.Errorf("%d of %d processes have spoken, and one ended: %w", n, len(places), err)
		case <-ctx.Done():
			return fmt.Errorf("%d of %d processes have spoken: %w", n, len(places), ctx.Err())
		}
	}
	return nil
}

func (g *greeter) close() {
	close(g.done)
	g.listener.Close()
}

// inNamespace calls f on a thread in a network namespace.
func inNamespace(path string, f func() error) error {
	return sys.OnThread(func() error {
		if err := sys.EnterNetwork(path); err != nil {
			return err
		}
		return f()
	})
}
