package bench

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Disk is the block device that a directory is on.
type Disk struct {
	// Name is the kernel's, such as "vda"; Device is major and minor number.
	Name, Device string
}

// FindDisk returns the disk of a directory. It is an error if its file system is
// on none, or on more than one.
func FindDisk(dir string) (Disk, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		return Disk{}, fmt.Errorf("find the disk of %s: %w", dir, err)
	}
	// As the C library takes device numbers apart.
	major, minor := (st.Dev>>8)&0xfff|(st.Dev>>32)&^0xfff, st.Dev&0xff|(st.Dev>>12)&^0xff
	path, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", major, minor))
	if errors.Is(err, fs.ErrNotExist) {
		return Disk{}, fmt.Errorf("the file system of %s is on no block device: use a directory on a disk", dir)
	}
	if err != nil {
		return Disk{}, fmt.Errorf("find the disk of %s: %w", dir, err)
	}
	if _, err := os.Stat(filepath.Join(path, "partition")); err == nil {
		path = filepath.Dir(path) // a partition has the queue of its disk
	}
	device, err := os.ReadFile(filepath.Join(path, "dev"))
	if err != nil {
		return Disk{}, fmt.Errorf("find the disk of %s: %w", dir, err)
	}
	return Disk{Name: filepath.Base(path), Device: strings.TrimSpace(string(device))}, nil
}

func (d Disk) readAheadFile() string {
	return "/sys/dev/block/" + d.Device + "/queue/read_ahead_kb"
}

// ReadAheadKB returns how far the kernel reads ahead on the disk.
func (d Disk) ReadAheadKB() (int, error) {
	text, err := os.ReadFile(d.readAheadFile())
	if err != nil {
		return 0, fmt.Errorf("read-ahead of %s: %w", d.Name, err)
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// SetReadAheadKB changes that, for files that are opened from now on.
func (d Disk) SetReadAheadKB(kb int) error {
	if err := os.WriteFile(d.readAheadFile(), []byte(strconv.Itoa(kb)), 0); err != nil {
		return fmt.Errorf("set read-ahead of %s: %w", d.Name, err)
	}
	if got, err := d.ReadAheadKB(); err != nil || got != kb {
		return errors.Join(fmt.Errorf("read-ahead of %s is %d KB after it was set to %d", d.Name, got, kb), err)
	}
	return nil
}

// Throttle is a limit of how fast this process, and those that it starts
// meanwhile, read from a disk.
type Throttle struct{ group, parent string }

// NewThrottle limits reads to so many bytes and operations a second by a control
// group of the controller blkio (version 1) or io (version 2), which this
// process joins. The caller calls Close.
func NewThrottle(d Disk, bytesPerSecond, perSecond int64) (*Throttle, error) {
	t, err := newThrottle(d, bytesPerSecond, perSecond)
	if err != nil {
		return nil, fmt.Errorf("limit reads of %s: %w", d.Name, err)
	}
	return t, nil
}

func newThrottle(d Disk, bytesPerSecond, perSecond int64) (*Throttle, error) {
	root, version, err := blockController()
	if err != nil {
		return nil, err
	}
	parent, err := ownGroup(root, version)
	if err != nil {
		return nil, err
	}
	t := &Throttle{parent: parent, group: filepath.Join(root, "volley-bench-"+strconv.Itoa(os.Getpid()))}
	if err := os.Mkdir(t.group, 0o755); err != nil {
		return nil, err
	}
	limits := map[string]string{
		"blkio.throttle.read_bps_device":  fmt.Sprintf("%s %d", d.Device, bytesPerSecond),
		"blkio.throttle.read_iops_device": fmt.Sprintf("%s %d", d.Device, perSecond),
	}
	if version == 2 {
		limits = map[string]string{"io.max": fmt.Sprintf("%s rbps=%d riops=%d", d.Device, bytesPerSecond, perSecond)}
		// It may be enabled already.
		if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+io"), 0); err != nil {
			return nil, errors.Join(err, os.Remove(t.group))
		}
	}
	for name, limit := range limits {
		if err := os.WriteFile(filepath.Join(t.group, name), []byte(limit), 0); err != nil {
			return nil, errors.Join(err, os.Remove(t.group))
		}
	}
	if err := join(t.group); err != nil {
		return nil, errors.Join(err, os.Remove(t.group))
	}
	return t, nil
}

// join moves this process to a control group.
func join(group string) error {
	return os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
}

// Close ends the limit. What this process has started meanwhile must have ended.
func (t *Throttle) Close() error {
	if err := join(t.parent); err != nil {
		return fmt.Errorf("end the limit of reads: %w", err)
	}
	if err := os.Remove(t.group); err != nil {
		return fmt.Errorf("end the limit of reads: %w", err)
	}
	return nil
}

// blockController returns where the control groups are that limit reads.
func blockController() (root string, version int, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields, super := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(super) < 3 {
			continue
		}
		switch {
		case super[0] == "cgroup" && strings.Contains(","+super[2]+",", ",blkio,"):
			return fields[4], 1, nil
		case super[0] == "cgroup2":
			names, err := os.ReadFile(filepath.Join(fields[4], "cgroup.controllers"))
			if err == nil && strings.Contains(" "+strings.TrimSpace(string(names))+" ", " io ") {
				return fields[4], 2, nil
			}
		}
	}
	return "", 0, errors.Join(errors.New("there is no control group controller blkio or io"), lines.Err())
}

// ownGroup returns the control group of this process.
func ownGroup(root string, version int) (string, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		if version == 1 && strings.Contains(","+parts[1]+",", ",blkio,") || version == 2 && parts[1] == "" {
			return filepath.Join(root, parts[2]), nil
		}
	}
	return "", errors.New("this process is in no such control group")
}
