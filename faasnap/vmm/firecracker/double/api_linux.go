package double

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
)

// serve does what a request asks for.
func (v *double) serve(method, path string, body []byte) (any, error) {
	switch request := method + " " + path; request {
	case "GET /version":
		return map[string]string{"firecracker_version": Version}, nil
	case "GET /machine-config":
		v.mu.Lock()
		defer v.mu.Unlock()
		return map[string]any{"vcpu_count": v.config.CPUs, "mem_size_mib": v.config.MemoryMiB, "smt": false, "track_dirty_pages": false, "huge_pages": "None"}, nil
	case "PUT /snapshot/load":
		return nil, v.load(body)
	case "PATCH /vm", "PUT /snapshot/create":
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.state == notStarted {
			return nil, fault("not supported before the microVM is started")
		}
		return v.serveStarted(request, body)
	default:
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.state != notStarted {
			return nil, fault("not supported after the microVM is started")
		}
		return nil, v.serveNotStarted(method, path, body)
	}
}

func (v *double) serveNotStarted(method, path string, body []byte) error {
	if method != "PUT" {
		return fault("invalid request method and/or path")
	}
	id := path[strings.LastIndexByte(path, '/')+1:]
	switch path {
	case "/machine-config":
		var b struct {
			CPUs      int `json:"vcpu_count"`
			MemoryMiB int `json:"mem_size_mib"`
		}
		if err := decode(body, &b, "vcpu_count", "mem_size_mib"); err != nil {
			return err
		}
		if b.CPUs < 1 || b.CPUs > 32 || b.MemoryMiB < 1 {
			return fault("the machine configuration is invalid")
		}
		v.config.CPUs, v.config.MemoryMiB = b.CPUs, b.MemoryMiB
	case "/boot-source":
		var b struct {
			Kernel      string `json:"kernel_image_path"`
			Initrd      string `json:"initrd_path"`
			CommandLine string `json:"boot_args"`
		}
		if err := decode(body, &b, "kernel_image_path"); err != nil {
			return err
		}
		for _, path := range []string{b.Kernel, b.Initrd} {
			if _, err := os.Stat(path); path != "" && err != nil {
				return fault("the kernel or initrd cannot be opened: " + err.Error())
			}
		}
		v.config.Kernel, v.config.CommandLine = b.Kernel, b.CommandLine
	case "/drives/" + id:
		var b struct {
			ID       string `json:"drive_id"`
			Path     string `json:"path_on_host"`
			Root     bool   `json:"is_root_device"`
			ReadOnly bool   `json:"is_read_only"`
		}
		if err := decode(body, &b, "drive_id", "is_root_device", "path_on_host", "is_read_only"); err != nil {
			return err
		}
		if b.ID != id {
			return fault("the id in the path and in the body differ")
		}
		d := configDrive{b.ID, b.Path, b.ReadOnly}
		if err := d.open(); err != nil {
			return err
		}
		v.config.Drives = append(v.config.Drives, d)
	case "/network-interfaces/" + id:
		var b struct {
			ID  string `json:"iface_id"`
			Tap string `json:"host_dev_name"`
			MAC string `json:"guest_mac"`
		}
		if err := decode(body, &b, "iface_id", "host_dev_name"); err != nil {
			return err
		}
		if _, err := net.ParseMAC(b.MAC); err != nil && b.MAC != "" || b.ID != id {
			return fault("the network interface is invalid")
		}
		n := configNetwork{b.ID, b.Tap}
		if err := n.open(); err != nil {
			return err
		}
		v.config.Networks = append(v.config.Networks, n)
	case "/vsock":
		var b struct {
			CID  uint32 `json:"guest_cid"`
			Path string `json:"uds_path"`
		}
		if err := decode(body, &b, "guest_cid", "uds_path"); err != nil {
			return err
		}
		if b.CID < 3 {
			return fault("the vsock is invalid")
		}
		v.config.Vsock = b.Path
	case "/actions":
		var b struct {
			Type string `json:"action_type"`
		}
		if err := decode(body, &b, "action_type"); err != nil {
			return err
		}
		if b.Type != "InstanceStart" {
			return fault("the action is unknown")
		}
		return v.start()
	default:
		return fault("invalid request method and/or path")
	}
	v.configured = true
	return nil
}

func (d configDrive) open() error {
	flags := os.O_RDWR
	if d.ReadOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(d.Path, flags, 0)
	if err != nil {
		return fault("the drive cannot be opened: " + err.Error())
	}
	return f.Close()
}

// open looks whether there is such an interface in its namespace.
func (n configNetwork) open() error {
	if _, err := net.InterfaceByName(n.Tap); err != nil {
		return fault("the tap cannot be opened: " + err.Error())
	}
	return nil
}

// start is InstanceStart.
func (v *double) start() error {
	if v.config.Kernel == "" {
		return fault("cannot start a microVM without a kernel")
	}
	kernel, err := os.ReadFile(v.config.Kernel)
	if err != nil || !bytes.HasPrefix(kernel, []byte("\x7fELF")) {
		return fault("the kernel cannot be loaded: invalid ELF magic number")
	}
	if err := v.boot(); err != nil {
		return err
	}
	v.state = running
	return nil
}

func (v *double) serveStarted(request string, body []byte) (any, error) {
	switch request {
	case "PATCH /vm":
		var b struct {
			State string `json:"state"`
		}
		if err := decode(body, &b, "state"); err != nil {
			return nil, err
		}
		switch b.State {
		case "Paused":
			v.state = paused
		case "Resumed":
			v.resume()
		default:
			return nil, fault("the state is unknown")
		}
		return nil, nil
	case "PUT /snapshot/create":
		var b struct {
			Type   string `json:"snapshot_type"`
			State  string `json:"snapshot_path"`
			Memory string `json:"mem_file_path"`
		}
		if err := decode(body, &b, "snapshot_path", "mem_file_path"); err != nil {
			return nil, err
		}
		if !slices.Contains([]string{"", "Full"}, b.Type) {
			return nil, fault("the double writes full snapshots only")
		}
		if v.state != paused {
			return nil, fault("save/restore is only possible when the microVM is paused")
		}
		return nil, v.save(b.State, b.Memory)
	}
	return nil, fmt.Errorf("no such request: %s", request)
}
