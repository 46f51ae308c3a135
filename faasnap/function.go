package faasnap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/volley-run/volley/faasnap/guest"
	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox/agent"
	"github.com/volley-run/volley/sandbox/agent/frame"
)

// Function is a function with what its virtual machines boot.
type Function struct {
	// Function is what the platform knows of it: Name, Runtime, Handler,
	// MemoryMB, Timeout, Environment.
	function.Function
	// Image is what is booted: paths in the Builder's directory.
	Image guest.Image
	// ImageDefaults is what a container image says of how it is run; nil for a
	// function of package type Zip.
	ImageDefaults *agent.ImageDefaults `json:",omitempty"`
	// User is whom the function runs as in a guest; nil is guest.FunctionID.
	User *frame.Credential `json:",omitempty"`
	// GuestMemoryBytes is how much memory its machines have: the function's and
	// the kernel's.
	GuestMemoryBytes int64
	// Created is when it was built.
	Created time.Time
}

// DefaultGuestMemoryBytes is the thesis's guest memory (5.2.1).
const DefaultGuestMemoryBytes = 2 << 30

// machine returns the hardware that the function's machines have.
func (f *Function) machine(network *vmm.Network) vmm.Machine {
	m := vmm.Machine{MemoryBytes: f.GuestMemoryBytes, CPUs: f.CPUs(), Network: network}
	for _, path := range f.Image.Drives() {
		m.Drives = append(m.Drives, vmm.Drive{Path: path, ReadOnly: true})
	}
	return m
}

// AddFunction keeps a function under its name, in the place of one that is
// there.
func (s *Service) AddFunction(f *Function) error { return s.AddFunctionAs(f.Name, f) }

// AddFunctionAs keeps a function under another name than its own, such as one
// for each of its revisions.
func (s *Service) AddFunctionAs(name string, f *Function) error {
	if err := checkName("function", name); err != nil {
		return err
	}
	if f.GuestMemoryBytes == 0 {
		f.GuestMemoryBytes = DefaultGuestMemoryBytes
	}
	if f.Created.IsZero() {
		f.Created = time.Now()
	}
	text, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return fmt.Errorf("add function %s: %w", f.Name, err)
	}
	if err := sys.ReplaceFile(s.functionPath(name), text, 0o600); err != nil {
		return fmt.Errorf("add function %s: %w", f.Name, err)
	}
	return nil
}

func (s *Service) functionPath(name string) string {
	return filepath.Join(s.cfg.Dir, functionsDir, name+".json")
}

// Function returns the function of a name. The error wraps ErrNotFound if there
// is none.
func (s *Service) Function(name string) (*Function, error) {
	if err := checkName("function", name); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(s.functionPath(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("function %s: %w", name, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read function %s: %w", name, err)
	}
	f := &Function{}
	if err := json.Unmarshal(text, f); err != nil {
		return nil, fmt.Errorf("read function %s: %w: build it again", name, err)
	}
	return f, nil
}

// Functions returns all functions, in the order of names.
func (s *Service) Functions() ([]*Function, error) {
	entries, err := os.ReadDir(filepath.Join(s.cfg.Dir, functionsDir))
	if err != nil {
		return nil, fmt.Errorf("list functions: %w", err)
	}
	var functions []*Function
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || checkName("function", name) != nil {
			continue
		}
		f, err := s.Function(name)
		if errors.Is(err, ErrNotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		functions = append(functions, f)
	}
	return functions, nil
}

// RemoveFunction removes a function, but not its snapshots.
func (s *Service) RemoveFunction(name string) error {
	if _, err := s.Function(name); err != nil && errors.Is(err, ErrNotFound) {
		return err
	}
	if err := os.Remove(s.functionPath(name)); err != nil {
		return fmt.Errorf("remove function %s: %w", name, err)
	}
	return nil
}

// BuildZip builds a function of package type Zip from a directory with its
// code, with Debian packages beyond its runtime, and adds it.
func (s *Service) BuildZip(ctx context.Context, f *Function, dir string, packages ...string) error {
	if err := checkName("function", f.Name); err != nil {
		return err
	}
	image, err := s.cfg.Builder.Function(ctx, f.Runtime, dir, packages...)
	if err != nil {
		return fmt.Errorf("build function %s: %w", f.Name, err)
	}
	kernel, err := s.cfg.Builder.Kernel(ctx)
	if err != nil {
		return fmt.Errorf("build function %s: %w", f.Name, err)
	}
	f.PackageType = function.Zip
	f.Image = s.bootable(image, kernel)
	return s.AddFunction(f)
}
