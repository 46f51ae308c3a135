package cni

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/particle"
	"github.com/volley-run/volley/particle/rtnl"
)

// session is one call of the plugin, which has the network for itself.
//
// In the node's state directory, cni/JOB holds what only the plugin knows of a
// network:
//
//	lock          held during a session
//	declared      the plugin has made the network, and removes it when nobody
//	              has an endpoint of it
//	groups/HASH   a symbolic link to the control group that ADD has enrolled for
//	              the owner whose name has that hash
type session struct {
	conf *Config
	node *particle.Node
	dir  string
	lock io.Closer
}

// begin opens a session. The caller ends it.
func begin(ctx context.Context, conf *Config) (*session, error) {
	node, err := particle.OpenNode(particle.NodeConfig{StateDir: conf.StateDir})
	if err != nil {
		return nil, err
	}
	state := conf.StateDir
	if state == "" {
		state = particle.DefaultStateDir
	}
	s := &session{conf: conf, node: node, dir: filepath.Join(state, "cni", conf.JobName())}
	if s.lock, err = waitForLock(ctx, filepath.Join(s.dir, "lock")); err != nil {
		return nil, errors.Join(err, node.Close())
	}
	return s, nil
}

// waitForLock takes the lock at path, or returns particle.ErrBusy, wrapped, when
// ctx ends before.
func waitForLock(ctx context.Context, path string) (io.Closer, error) {
	for {
		lock, err := sys.LockFile(path)
		if !errors.Is(err, sys.ErrLocked) {
			return lock, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", particle.ErrBusy, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (s *session) end() error { return errors.Join(s.lock.Close(), s.node.Close()) }

// within opens a session for f, and gives errors their codes.
func within(ctx context.Context, conf *Config, f func(s *session) error) error {
	s, err := begin(ctx, conf)
	if err != nil {
		return cniError(err)
	}
	return cniError(errors.Join(f(s), s.end()))
}

// ownerPrefix begins the names of all who have endpoints by a configuration.
func (s *session) ownerPrefix() string { return "cni:" + s.conf.Name + "/" }

// owner names an attachment in the network's pool.
func (s *session) owner(container, ifName string) string {
	name := s.ownerPrefix() + container + "/" + ifName
	if len(name) > 200 { // a pool takes 255 bytes
		name = s.ownerPrefix() + hash(container) + "/" + ifName
	}
	return name
}

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:16])
}

// declare makes the network, or makes sure of it. In mode job it is brought
// into the namespace at netns.
func (s *session) declare(ctx context.Context, netns, ifName string) (*particle.Network, error) {
	if s.conf.Job != "" {
		return s.declared(netns, ifName)
	}
	old, err := s.node.Open(s.conf.JobName())
	absent := errors.Is(err, particle.ErrNotFound)
	if err != nil && !absent {
		return nil, err
	}
	var opts []particle.Option
	if s.conf.Mode == ModeJob {
		if !absent {
			if absent, err = s.leaveDeadNamespace(ctx, old); err != nil {
				return nil, err
			}
		}
		if !absent {
			if err := sameSandbox(old, netns, ifName); err != nil {
				return nil, err
			}
			netns, ifName = old.Namespace(), old.Interface()
		}
		opts = append(opts, particle.InNamespace(netns, ifName))
	}
	if absent {
		if err := os.WriteFile(s.mark(), nil, 0o600); err != nil {
			return nil, err
		}
	}
	nw, err := s.node.Declare(*s.conf.Network, opts...)
	if err != nil {
		return nil, err
	}
	if err := nw.Apply(ctx); err != nil {
		return nil, err
	}
	return nw, nil
}

// declared opens a network that somebody else has made.
func (s *session) declared(netns, ifName string) (*particle.Network, error) {
	nw, err := s.node.Open(s.conf.Job)
	if errors.Is(err, particle.ErrNotFound) {
		return nil, invalid("job", "this node has no network %s: declare it with volley net up --name %s, or in \"network\"", s.conf.Job, s.conf.Job)
	}
	if err != nil {
		return nil, err
	}
	if err := checkDesign("job", nw.Spec().Design, s.conf.Mode); err != nil {
		return nil, err
	}
	if s.conf.Mode == ModeJob {
		return nw, sameSandbox(nw, netns, ifName)
	}
	return nw, nil
}

// leaveDeadNamespace removes a network whose job's namespace is gone, and with
// it all containers.
func (s *session) leaveDeadNamespace(ctx context.Context, nw *particle.Network) (gone bool, err error) {
	ns, err := rtnl.Open(nw.Namespace())
	switch {
	case err == nil:
		return false, ns.Close()
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, rtnl.ErrNotNamespace):
		return true, s.close(ctx, nw)
	}
	return false, err
}

// sameSandbox returns an error unless the network is in the namespace at netns,
// under whatever path, with an interface of that name.
func sameSandbox(nw *particle.Network, netns, ifName string) error {
	ns, err := rtnl.Open(nw.Namespace())
	if err != nil {
		return err
	}
	defer ns.Close()
	if !ns.Same(netns) {
		return types.NewError(ErrConflict, fmt.Sprintf("CNI_NETNS: %s is another namespace than that of job %s, %s", netns, nw.Spec().Name, nw.Namespace()),
			fmt.Sprintf("in mode %q all containers of a job share one namespace: use it, or mode %q", ModeJob, ModeNamespace))
	}
	if ifName != nw.Interface() {
		return types.NewError(ErrConflict, fmt.Sprintf("CNI_IFNAME: job %s has the interface %s in its namespace, not %s", nw.Spec().Name, nw.Interface(), ifName), "use that")
	}
	return nil
}

func (s *session) mark() string { return filepath.Join(s.dir, "declared") }

// close removes a network that the plugin has made, and forgets it.
func (s *session) close(ctx context.Context, nw *particle.Network) error {
	if err := errors.Join(s.expelAll(), nw.Close(ctx)); err != nil {
		return err
	}
	return removeFile(s.mark())
}

// closeUnused removes the network if the plugin has made it and nobody has an
// endpoint of it.
func (s *session) closeUnused(ctx context.Context, nw *particle.Network) error {
	if _, err := os.Stat(s.mark()); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	owners, err := nw.Pool().Owners()
	if err != nil || len(owners) > 0 {
		return err
	}
	return s.close(ctx, nw)
}

// free gives back what an owner has. It may be repeated.
func (s *session) free(ctx context.Context, nw *particle.Network, owner string) error {
	owners, err := nw.Pool().Owners()
	if err != nil {
		return err
	}
	ep, has := owners[owner]
	if has && nw.Spec().Design == particle.Attached {
		if err := nw.Detach(ctx, ep.Index); err != nil {
			return err
		}
	}
	if err := s.expel(owner); err != nil {
		return err
	}
	return nw.Pool().Release(ctx, owner)
}

// enroll holds the container's control group to its endpoint's address, if
// there is a group and the network's discipline is that of groups.
func (s *session) enroll(ctx context.Context, nw *particle.Network, ep particle.Endpoint, owner string) error {
	if s.conf.Mode != ModeJob {
		return nil // the namespace is its own
	}
	path := s.conf.RuntimeConfig.CgroupPath
	if path == "" {
		if nw.Spec().Discipline == particle.DisciplineBPF {
			return invalid("network.discipline", "%s needs the container's control group: give the configuration \"capabilities\": {\"cgroupPath\": true} and use a runtime that fills it in, or use the discipline %s", particle.DisciplineBPF, particle.DisciplineNone)
		}
		return nil
	}
	if !nw.Disciplined() {
		return nil
	}
	group, err := findGroup(path)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(s.dir, "groups"), 0o700); err != nil {
		return err
	}
	if err := s.expel(owner); err != nil {
		return err
	}
	if err := os.Symlink(group, s.group(owner)); err != nil {
		return err
	}
	return nw.EnrollGroup(ctx, ep, group)
}

// findGroup returns the absolute path of a control group that the runtime names.
func findGroup(path string) (string, error) {
	const field = "runtimeConfig.cgroupPath"
	mounts, err := sys.Mounts()
	if err != nil {
		return "", err
	}
	root, ok := sys.Cgroup2(mounts)
	if !ok {
		return "", invalid(field, "cgroup v2 is not mounted: use the discipline %s", particle.DisciplineNone)
	}
	group := filepath.Clean(path)
	if group != root && !strings.HasPrefix(group, root+"/") {
		group = filepath.Join(root, filepath.Clean("/"+path))
	}
	if group == root {
		return "", invalid(field, "%q is the root: it must be the container's own group", path)
	}
	if info, err := os.Stat(group); err != nil || !info.IsDir() {
		return "", invalid(field, "there is no control group %s: the runtime has to make it before it calls plugins", group)
	}
	return group, nil
}

func (s *session) group(owner string) string { return filepath.Join(s.dir, "groups", hash(owner)) }

// expel takes back what enroll did.
func (s *session) expel(owner string) error { return expelLink(s.group(owner)) }

func expelLink(link string) error {
	group, err := os.Readlink(link)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := particle.ExpelGroup(group); err != nil {
		return err
	}
	return removeFile(link)
}

func (s *session) expelAll() error {
	links, err := filepath.Glob(filepath.Join(s.dir, "groups", "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, link := range links {
		errs = append(errs, expelLink(link))
	}
	return errors.Join(errs...)
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
