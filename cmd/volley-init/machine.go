//go:build unix

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox/agent/frame"
)

// This file makes a running system of what a virtual machine's kernel hands to
// process 1: an initrd with volley-init as /init, and drives.

// The kernel's command line reaches process 1 as its environment, where a
// parameter is no module's.
const (
	// envMachine, when "vm", says that this is process 1 of a virtual machine.
	envMachine = "volley_init"
	// envEnd, when "reset", says that the machine ends by a restart rather than
	// by being powered off: Firecracker's do.
	envEnd = "volley_end"
	// envTmp is the size of /tmp in MiB; without, it is half of the memory.
	envTmp = "volley_tmp"
)

const (
	// moduleList names, in the initrd, the kernel modules to load in this
	// order. A line is a path and the devices that the module is for: "pci" or
	// "mmio", a bus, or virtio device numbers. A module without is for all.
	moduleList = "/modules"
	// newRoot is where the root drive is mounted first.
	newRoot = "/newroot"
	// rootDrive has the root file system, codeDrive the function's code.
	rootDrive, codeDrive = "/dev/vda", "/dev/vdb"
	codeDir              = "/var/task"
	runDir               = "/run/volley"
	instanceFile         = runDir + "/instance-id"
	shortcutFile         = runDir + "/runtime"
	hostName             = "sandbox"
	// netDevice is the network device, as the kernel calls the first one.
	netDevice = "eth0"
	// driveTime bounds the wait for a drive.
	driveTime = 10 * time.Second
	pollEvery = time.Millisecond
)

// inMachine says whether this is process 1 of a virtual machine.
func inMachine() bool { return os.Getpid() == 1 && os.Getenv(envMachine) == "vm" }

// endMachine ends the machine. It does not return: process 1 must not end.
func endMachine() {
	if err := sys.PowerOff(os.Getenv(envEnd) == "reset"); err != nil {
		fmt.Fprintf(os.Stderr, "volley-init: %v\n", err)
	}
	select {}
}

// startMachine mounts what functions need and enters the root drive.
func startMachine() error {
	for _, m := range []struct{ fstype, target string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fmt.Errorf("start machine: %w", err)
		}
		if err := sys.MountFS(m.fstype, m.fstype, m.target, sys.MountFlags{NoSetuid: true, NoExec: true}, ""); err != nil {
			return err
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := mountDrives(); err != nil {
		return err
	}
	if err := removeInitrd(); err != nil {
		return err
	}
	if err := sys.EnterRoot(newRoot, "/dev", "/proc", "/sys"); err != nil {
		return err
	}
	return prepareRoot()
}

// loadModules loads the modules of the initrd whose devices are there.
func loadModules() error {
	list, err := os.Open(moduleList)
	if err != nil {
		return fmt.Errorf("load modules: %w", err)
	}
	defer list.Close()
	var devices []string
	lines := bufio.NewScanner(list)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 {
			continue
		}
		if wanted := fields[1:]; len(wanted) > 0 {
			if len(devices) == 0 {
				if devices, err = virtioDevices(); err != nil {
					return err
				}
			}
			there := len(devices) > 0 && slices.ContainsFunc(wanted, func(d string) bool { return slices.Contains(devices, d) })
			if bus := wanted[0]; bus == "pci" || bus == "mmio" {
				there = hasPCI() == (bus == "pci")
			}
			if !there {
				continue
			}
		}
		if err := loadModule(fields[0]); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("load modules: %w", err)
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("load module: %w", err)
	}
	defer f.Close()
	return sys.LoadModule(f)
}

func hasPCI() bool {
	entries, err := os.ReadDir("/sys/bus/pci/devices")
	return err == nil && len(entries) > 0
}

// virtioDevices returns the numbers of the kinds of virtio devices that there
// are: "2" is a block device. There are none before the bus's module is loaded.
func virtioDevices() ([]string, error) {
	files, err := filepath.Glob("/sys/bus/virtio/devices/*/device")
	if err != nil {
		return nil, fmt.Errorf("list virtio devices: %w", err)
	}
	var numbers []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("list virtio devices: %w", err)
		}
		number := strings.TrimLeft(strings.TrimPrefix(strings.TrimSpace(string(text)), "0x"), "0")
		numbers = append(numbers, number)
	}
	return numbers, nil
}

// mountDrives mounts the root drive on newRoot and, if there is one, the drive
// with the function's code in it. Nothing but /tmp and the like can be written
// to, as on Lambda: that needs no memory until it is.
func mountDrives() error {
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	if err := waitForDrive(rootDrive); err != nil {
		return err
	}
	// A program of another user's rights would not be held by what bounds the
	// function's user.
	readOnly := sys.MountFlags{ReadOnly: true, NoDevices: true, NoSetuid: true}
	if err := sys.MountFS("ext4", rootDrive, newRoot, readOnly, "noload"); err != nil {
		return err
	}
	if _, err := os.Stat(codeDrive); err == nil {
		if err := sys.MountFS("ext4", codeDrive, filepath.Join(newRoot, codeDir), readOnly, "noload"); err != nil {
			return err
		}
	}
	scratch := sys.MountFlags{NoSetuid: true, NoDevices: true}
	options := "mode=1777"
	if n, err := strconv.Atoi(os.Getenv(envTmp)); err == nil && n > 0 {
		options += ",size=" + strconv.Itoa(n) + "m"
	}
	if err := sys.MountFS("tmpfs", "tmpfs", filepath.Join(newRoot, "tmp"), scratch, options); err != nil {
		return err
	}
	return sys.MountFS("tmpfs", "tmpfs", filepath.Join(newRoot, "run"), scratch, "mode=755")
}

// waitForDrive waits until a drive is there.
func waitForDrive(path string) error {
	for start := time.Now(); ; time.Sleep(pollEvery) {
		_, err := os.Stat(path)
		if err == nil {
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) || time.Since(start) > driveTime {
			return fmt.Errorf("wait for drive: %w", err)
		}
	}
}

// removeInitrd gives back the memory of what is of no use any more; nobody
// could reach it from the new root.
func removeInitrd() error {
	for _, path := range []string{"/lib", moduleList, "/init"} {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("remove initrd: %w", err)
		}
	}
	return nil
}

// prepareRoot makes in the new root what programs expect.
func prepareRoot() error {
	// devtmpfs can be written to as tmpfs can: that saves a mount.
	if err := os.Mkdir("/dev/shm", 0o777); err != nil {
		return fmt.Errorf("prepare root: %w", err)
	}
	if err := os.Chmod("/dev/shm", 0o777|fs.ModeSticky); err != nil {
		return fmt.Errorf("prepare root: %w", err)
	}
	for name, to := range map[string]string{"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"} {
		if err := os.Symlink("/proc/self/fd"+to, "/dev/"+name); err != nil {
			return fmt.Errorf("prepare root: %w", err)
		}
	}
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return fmt.Errorf("prepare root: %w", err)
	}
	for name, value := range kernelSettings() {
		// A kernel without the setting has nothing to be quiet about.
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("prepare root: %w", err)
		}
	}
	if err := sys.SetHostName(hostName); err != nil {
		return err
	}
	return sys.LoopbackUp()
}

// kernelSettings keep the kernel from work that nobody asked for, and which is in
// the way of the first invocation after a restore. Memory is given out until
// there is none, and whoever uses too much is ended, as in a container, whose
// host has plenty: by default more than the machine has is refused at once.
func kernelSettings() map[string]string {
	return map[string]string{
		"vm/compaction_proactiveness":  "0",
		"vm/stat_interval":             "3600",
		"vm/dirty_writeback_centisecs": "0",
		"vm/overcommit_memory":         "1",
	}
}

// connect puts the machine on a network, as far as it is known yet.
func connect(n *frame.Network) error {
	if err := sys.ConnectNetwork(netDevice); err != nil {
		return err
	}
	return join(n)
}

// join gives the machine its addresses.
func join(n *frame.Network) error {
	return sys.JoinNetwork(netDevice, n.MTU, n.Address, n.Address6)
}
