package particle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// stateDir holds what a node knows of its networks:
//
//	networks/NAME.json  one record for each network, from before its first
//	                    object is made until after its last one is gone
//	pools/NAME          who has which endpoint; see Pool
//	vni/NUMBER          a symbolic link to the name of the segment that has it
//	labels/LABEL        the same for what its namespaces are called
//	locks/LABEL         who holds it changes the segment
//	locks/vtep.lock     held by whoever uses the VTEP, alone by whoever makes
//	                    or removes it
type stateDir string

// vtepLock is the name of the VTEP's lock. No label has a dot.
const vtepLock = "vtep.lock"

const recordVersion = 1

// record is what is known of one network.
type record struct {
	Version int       `json:"version"`
	State   State     `json:"state"`
	Since   time.Time `json:"since"`
	MTU     int       `json:"mtu,omitempty"`
	Spec    Spec      `json:"spec"`
	// Learned are the peers that a control plane told of.
	Learned []Peer `json:"learned,omitempty"`
	// Leaving are peers of which something may still be there.
	Leaving []Peer `json:"leaving,omitempty"`
	// Namespace and Interface are those of InNamespace.
	Namespace string `json:"namespace,omitempty"`
	Interface string `json:"interface,omitempty"`
}

// peers are all that the network has.
func (r record) peers() []Peer { return mergePeers(r.Spec.Peers, r.Learned) }

// mergePeers returns static, and learned where static says nothing.
func mergePeers(static, learned []Peer) []Peer {
	all := slices.Clone(static)
	for _, p := range learned {
		if !slices.ContainsFunc(static, func(q Peer) bool { return q.Underlay == p.Underlay }) {
			all = append(all, p)
		}
	}
	return all
}

func (d stateDir) record(name string) string {
	return filepath.Join(string(d), "networks", name+".json")
}
func (d stateDir) pool(name string) string { return filepath.Join(string(d), "pools", name) }
func (d stateDir) vni(vni uint32) string {
	return filepath.Join(string(d), "vni", strconv.FormatUint(uint64(vni), 10))
}
func (d stateDir) label(label string) string { return filepath.Join(string(d), "labels", label) }

// load returns a network's record, or ErrNotFound, wrapped.
func (d stateDir) load(name string) (record, error) {
	text, err := os.ReadFile(d.record(name))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, fmt.Errorf("network %s: %w", name, ErrNotFound)
	}
	if err != nil {
		return record{}, err
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return record{}, fmt.Errorf("read %s: %w", d.record(name), err)
	}
	if r.Version != recordVersion {
		return record{}, fmt.Errorf("read %s: its version is %d, not %d: remove the network with the version of volley that made it", d.record(name), r.Version, recordVersion)
	}
	return r, nil
}

// save replaces a network's record. It need not outlive the machine's restart,
// so nothing is synced.
func (d stateDir) save(r record) error {
	r.Version = recordVersion
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write state of %s: %w", r.Spec.Name, err)
	}
	path := d.record(r.Spec.Name)
	// The segment's lock keeps others from this name.
	temporary := path + ".new"
	if err := d.make(path, func() error { return os.WriteFile(temporary, text, 0o600) }); err != nil {
		return fmt.Errorf("write state of %s: %w", r.Spec.Name, err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("write state of %s: %w", r.Spec.Name, err)
	}
	return nil
}

// begin is save for a network that may not have a record yet. The error is
// fs.ErrExist, wrapped, if it has: a job of that name of another tenant has
// another lock.
func (d stateDir) begin(r record) error {
	r.Version = recordVersion
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write state of %s: %w", r.Spec.Name, err)
	}
	path := d.record(r.Spec.Name)
	temporary := path + "." + strconv.FormatUint(uint64(r.Spec.VNI), 10) + ".new"
	if err := d.make(path, func() error { return os.WriteFile(temporary, text, 0o600) }); err != nil {
		return fmt.Errorf("write state of %s: %w", r.Spec.Name, err)
	}
	defer os.Remove(temporary)
	if err := os.Link(temporary, path); err != nil {
		return fmt.Errorf("write state of %s: %w", r.Spec.Name, err)
	}
	return nil
}

// make calls f, again with path's directory made if it was missing.
func (d stateDir) make(path string, f func() error) error {
	err := f()
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			err = f()
		}
	}
	return err
}

// all returns all records, by name.
func (d stateDir) all() ([]record, error) {
	names, err := d.names("networks")
	if err != nil {
		return nil, err
	}
	var records []record
	for _, name := range names {
		name, ok := strings.CutSuffix(name, ".json")
		if !ok {
			continue
		}
		r, err := d.load(name)
		if errors.Is(err, ErrNotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	return records, nil
}

// names returns what is in one of d's directories, which may not be there.
func (d stateDir) names(dir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(string(d), dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// claim makes the file at path say that it is owner's, or returns ErrConflict,
// wrapped, if it is another's.
func (d stateDir) claim(path, owner string) error {
	err := d.make(path, func() error { return os.Symlink(owner, path) })
	if err == nil || d.claimed(path) == owner {
		return nil
	}
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %s has it", ErrConflict, d.claimed(path))
	}
	return err
}

// claimed returns whose the file at path is, or "".
func (d stateDir) claimed(path string) string {
	owner, err := os.Readlink(path)
	if err != nil {
		return ""
	}
	return owner
}

// unclaim takes back what claim did.
func (d stateDir) unclaim(path, owner string) error {
	if d.claimed(path) != owner {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// lock takes the lock of that name, which the kernel frees when its holder dies.
// alone keeps everybody else out, otherwise only those who want to be alone. It
// waits until ctx ends, and then returns ErrBusy, wrapped.
func (d stateDir) lock(ctx context.Context, name string, alone bool) (unlock func(), err error) {
	how := syscall.LOCK_SH
	if alone {
		how = syscall.LOCK_EX
	}
	pause := 100 * time.Microsecond
	for {
		unlock, err := d.tryLock(name, how)
		if err == nil || !errors.Is(err, syscall.EWOULDBLOCK) {
			return unlock, err
		}
		// Waiting for flock itself could not be given up.
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (%s): %w", ErrBusy, name, ctx.Err())
		case <-time.After(pause):
		}
		pause = min(2*pause, 20*time.Millisecond)
	}
}

// tryLock returns syscall.EWOULDBLOCK, wrapped, if it would have to wait.
func (d stateDir) tryLock(name string, how int) (unlock func(), err error) {
	path := filepath.Join(string(d), "locks", name)
	for {
		var f *os.File
		err := d.make(path, func() (err error) {
			f, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		err = syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if errors.Is(err, syscall.EINTR) {
			f.Close()
			continue
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		// Its last holder may have removed it while this one waited.
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock: %w", err)
		}
		if current, err := os.Stat(path); err == nil && os.SameFile(mine, current) {
			return func() { f.Close() }, nil
		}
		f.Close()
	}
}

// dropLock removes the file of a lock that the caller holds alone.
func (d stateDir) dropLock(name string) error {
	if err := os.Remove(filepath.Join(string(d), "locks", name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove lock: %w", err)
	}
	return nil
}

// forget removes who has a network's endpoints.
func (d stateDir) forget(name string) error {
	if err := os.RemoveAll(d.pool(name)); err != nil {
		return fmt.Errorf("forget who has endpoints: %w", err)
	}
	return nil
}

// remove removes a network's record, the last thing to go.
func (d stateDir) remove(name string) error {
	if err := os.Remove(d.record(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove state: %w", err)
	}
	return nil
}
