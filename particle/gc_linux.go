package particle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/volley-run/volley/particle/rtnl"
)

// GCReport says what GC has removed.
type GCReport struct {
	// Removed describes each thing for people, such as "network job1".
	Removed []string `json:"removed"`
}

// GC removes what nobody needs any more: networks whose Apply or Close was not
// finished by a process that is gone, networks whose namespaces somebody has
// removed, and whatever bears this node's names without belonging to a network
// that it knows. Without a network it also removes the VTEP. It waits for
// others that are at work until ctx ends, and may run at any time.
func (n *Node) GC(ctx context.Context) (GCReport, error) {
	var report GCReport
	removed := func(format string, args ...any) {
		what := fmt.Sprintf(format, args...)
		n.log.Info("removed what nobody needs", "what", what)
		report.Removed = append(report.Removed, what)
	}
	if err := errors.Join(n.collectNetworks(ctx, removed), n.collectOrphans(ctx, removed)); err != nil {
		return report, fmt.Errorf("collect garbage: %w", err)
	}
	return report, nil
}

// collectNetworks removes networks that are not whole.
func (n *Node) collectNetworks(ctx context.Context, removed func(string, ...any)) error {
	records, err := n.state.all()
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range records {
		nw := n.network(r.Spec, r.options())
		unlock, err := n.state.tryLock(nw.label(), syscall.LOCK_EX)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			continue // somebody is at work
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		whole, err := n.isWhole(ctx, nw)
		if err == nil && !whole {
			if err = nw.closeLocked(ctx); err == nil {
				removed("network %s", r.Spec.Name)
			}
		}
		unlock()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// isWhole reports whether a network is up, for the holder of its lock.
func (n *Node) isWhole(ctx context.Context, nw *Network) (bool, error) {
	r, err := n.state.load(nw.spec.Name)
	if errors.Is(err, ErrNotFound) {
		return true, nil // removed meanwhile
	}
	if err != nil || r.State != StateUp {
		return false, err
	}
	v, leave, err := n.enterVTEP(ctx)
	if err != nil {
		return false, err
	}
	defer leave()
	return nw.intact(v)
}

// collectOrphans removes what no record names. Nobody is at work meanwhile.
func (n *Node) collectOrphans(ctx context.Context, removed func(string, ...any)) error {
	unlock, err := n.state.lock(ctx, vtepLock, true)
	if err != nil {
		return err
	}
	defer unlock()
	records, err := n.state.all()
	if err != nil {
		return err
	}
	known := knownOf(n, records)
	return errors.Join(
		n.collectState(known, removed),
		n.collectLinks(ctx, known, removed),
		n.collectNamespaces(known, removed),
		n.collectGroups(ctx, known, removed),
	)
}

// known is what the records name.
type known struct {
	networks, labels map[string]bool
	vnis             map[uint32]bool
}

func knownOf(n *Node, records []record) known {
	k := known{map[string]bool{}, map[string]bool{}, map[uint32]bool{}}
	for _, r := range records {
		k.networks[r.Spec.Name] = true
		k.labels[n.network(r.Spec, r.options()).label()] = true
		k.vnis[r.Spec.VNI] = true
	}
	return k
}

// collectState removes claims, pools and locks without a record.
func (n *Node) collectState(k known, removed func(string, ...any)) error {
	var errs []error
	for _, dir := range []struct {
		name   string
		needed func(file string) bool
		what   string
	}{
		{"networks", func(file string) bool { return strings.HasSuffix(file, ".json") }, ""},
		{"pools", func(file string) bool { return k.networks[file] }, "pool of endpoints"},
		{"vni", func(file string) bool {
			vni, err := strconv.ParseUint(file, 10, 32)
			return err == nil && k.vnis[uint32(vni)]
		}, "claim on VNI"},
		{"labels", func(file string) bool { return k.labels[file] }, "claim on name"},
		{"locks", func(file string) bool { return file == vtepLock || k.labels[file] }, ""},
	} {
		names, err := n.state.names(dir.name)
		errs = append(errs, err)
		for _, name := range names {
			if dir.needed(name) {
				continue
			}
			path := filepath.Join(string(n.state), dir.name, name)
			if dir.name == "locks" {
				// Whoever waits for the VTEP has taken it already.
				unlock, err := n.state.tryLock(name, syscall.LOCK_EX)
				if err != nil {
					continue
				}
				errs = append(errs, n.state.dropLock(name))
				unlock()
				continue
			}
			errs = append(errs, os.RemoveAll(path))
			if dir.what != "" {
				removed("%s %s", dir.what, name)
			}
		}
	}
	return errors.Join(errs...)
}

// collectLinks removes the links of unknown segments, and the VTEP if it has
// none of known ones.
func (n *Node) collectLinks(ctx context.Context, k known, removed func(string, ...any)) error {
	stray, err := n.deleteStray(ctx, func(vni uint32) bool { return !k.vnis[vni] })
	if err != nil {
		return err
	}
	for _, name := range stray {
		removed("link %s", name)
	}
	v, err := n.openVTEP()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil && !errors.Is(err, rtnl.ErrNotNamespace) {
		return err
	}
	if err == nil {
		links, err := v.conn.Links()
		if err != nil {
			return err
		}
		var b rtnl.Batch
		var gone []uint32
		for _, l := range links {
			if l.Group != 0 && !k.vnis[l.Group] && !slices.Contains(gone, l.Group) {
				gone = append(gone, l.Group)
				b.DeleteGroup(l.Group)
			}
		}
		if err := v.conn.Do(ctx, &b); err != nil {
			return err
		}
		for _, vni := range gone {
			removed("links of VNI %d", vni)
		}
	}
	if len(k.networks) > 0 {
		return nil
	}
	n.mu.Lock()
	if n.vtep != nil {
		err = n.vtep.close()
		n.vtep = nil
	} else {
		err = nil
	}
	n.mu.Unlock()
	if err != nil {
		return err
	}
	if err := rtnl.Remove(n.vtepPath()); err != nil {
		return err
	}
	removed("VTEP %s", n.vtepPath())
	return nil
}

// namespaceLabel is what namespaces of segments and endpoints are called, after
// "volley-" and the node's name; the first group is the segment's label.
var namespaceLabel = regexp.MustCompile(`^((?:job|tenant)-[a-z0-9-]+)(?:\.e[0-9]+)?$`)

func (n *Node) collectNamespaces(k known, removed func(string, ...any)) error {
	entries, err := os.ReadDir(n.cfg.NamespaceDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	prefix := filepath.Base(n.namespacePath(""))
	var errs []error
	for _, e := range entries {
		name, ok := strings.CutPrefix(e.Name(), prefix)
		m := namespaceLabel.FindStringSubmatch(name)
		if !ok || m == nil || k.labels[m[1]] {
			continue
		}
		path := filepath.Join(n.cfg.NamespaceDir, e.Name())
		if err := rtnl.Remove(path); err != nil {
			errs = append(errs, err)
			continue
		}
		removed("namespace %s", path)
	}
	return errors.Join(errs...)
}

// collectGroups removes the control groups of unknown networks, and the tree
// if there is no network at all.
func (n *Node) collectGroups(ctx context.Context, k known, removed func(string, ...any)) error {
	tree, err := n.cgroups()
	if errors.Is(err, ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(tree.parent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() || k.networks[e.Name()] {
			continue
		}
		if err := n.expel(ctx, e.Name()); err != nil {
			errs = append(errs, err)
			continue
		}
		removed("control groups of %s", e.Name())
	}
	labels, err := n.unserve(func(label string) bool { return !k.labels[label] })
	errs = append(errs, err)
	for _, label := range labels {
		removed("program of namespace %s", label)
	}
	if err := errors.Join(errs...); err != nil || len(k.networks) > 0 {
		return err
	}
	return n.removeGuard()
}
