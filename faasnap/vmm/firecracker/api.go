package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/volley-run/volley/internal/sys"
)

// The bodies of Firecracker's API, as far as they are used here.
type (
	machineConfig struct {
		CPUs      int   `json:"vcpu_count"`
		MemoryMiB int64 `json:"mem_size_mib"`
	}
	bootSource struct {
		Kernel      string `json:"kernel_image_path"`
		Initrd      string `json:"initrd_path,omitempty"`
		CommandLine string `json:"boot_args"`
	}
	drive struct {
		ID       string `json:"drive_id"`
		Path     string `json:"path_on_host"`
		Root     bool   `json:"is_root_device"`
		ReadOnly bool   `json:"is_read_only"`
	}
	networkInterface struct {
		ID  string `json:"iface_id"`
		Tap string `json:"host_dev_name"`
		MAC string `json:"guest_mac,omitempty"`
	}
	vsock struct {
		CID  uint32 `json:"guest_cid"`
		Path string `json:"uds_path"`
	}
	action struct {
		Type string `json:"action_type"`
	}
	vmState struct {
		State string `json:"state"`
	}
	snapshotCreate struct {
		Type   string `json:"snapshot_type"`
		State  string `json:"snapshot_path"`
		Memory string `json:"mem_file_path"`
	}
	snapshotLoad struct {
		State   string            `json:"snapshot_path"`
		Memory  memoryBackend     `json:"mem_backend"`
		Resume  bool              `json:"resume_vm"`
		Network []networkOverride `json:"network_overrides,omitempty"`
	}
	memoryBackend struct {
		Type string `json:"backend_type"`
		Path string `json:"backend_path"`
	}
	networkOverride struct {
		ID  string `json:"iface_id"`
		Tap string `json:"host_dev_name"`
	}
	instanceVersion struct {
		Version string `json:"firecracker_version"`
	}
)

// faultError is an answer of Firecracker that says that it did not do something.
type faultError struct {
	method, path string
	status       int
	message      string
}

func (e *faultError) Error() string {
	message := e.message
	if message == "" {
		message = "no reason given"
	}
	return fmt.Sprintf("firecracker refuses %s %s (status %d): %s", e.method, e.path, e.status, message)
}

// maxAnswer is far more than Firecracker has to say.
const maxAnswer = 1 << 20

// client speaks to one Firecracker.
type client struct{ http http.Client }

func newClient(socket string) *client {
	return &client{http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return sys.DialUnix(ctx, socket)
		},
		DisableCompression: true,
	}}}
}

func (c *client) put(ctx context.Context, path string, body any) error {
	return c.do(ctx, http.MethodPut, path, body, nil)
}

func (c *client) patch(ctx context.Context, path string, body any) error {
	return c.do(ctx, http.MethodPatch, path, body, nil)
}

func (c *client) get(ctx context.Context, path string, answer any) error {
	return c.do(ctx, http.MethodGet, path, nil, answer)
}

func (c *client) do(ctx context.Context, method, path string, body, answer any) error {
	var text io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		text = bytes.NewReader(b)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, text)
	if err != nil {
		return err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	request.Header.Set("Accept", "application/json")
	response, err := c.http.Do(request)
	if err != nil {
		return fmt.Errorf("ask firecracker: %w", err)
	}
	said, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return fmt.Errorf("ask firecracker: %s %s: %w", method, path, err)
	}
	if response.StatusCode/100 != 2 {
		var fault struct {
			Message string `json:"fault_message"`
		}
		if json.Unmarshal(said, &fault) != nil {
			fault.Message = string(bytes.TrimSpace(said))
		}
		return &faultError{method, path, response.StatusCode, fault.Message}
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(said, answer); err != nil {
		return fmt.Errorf("parse firecracker's answer to %s %s: %w", method, path, err)
	}
	return nil
}

func (c *client) close() { c.http.CloseIdleConnections() }
