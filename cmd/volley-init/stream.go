//go:build unix

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/volley-run/volley/internal/sys"
)

const (
	// portName is the virtio-serial port that the host speaks through.
	portName = "org.volley.agent"
	// vsockPort is where the host connects to where there is no such port.
	vsockPort = 52
)

// hostStream returns the stream to the host of a virtual machine.
func hostStream() (io.ReadWriter, error) {
	device, err := serialPort(portName)
	if err != nil {
		return nil, err
	}
	if device == "" {
		accept, err := sys.ListenVsock(vsockPort)
		if err != nil {
			return nil, fmt.Errorf("find the host: there is no virtio-serial port %s, and: %w", portName, err)
		}
		return &streams{accept: func() (io.ReadWriteCloser, error) { return accept() }}, nil
	}
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("find the host: %w", err)
	}
	return &port{File: f}, nil
}

// serialPort returns the device of the virtio-serial port of that name, or ""
// if there is none.
func serialPort(name string) (string, error) {
	files, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return "", fmt.Errorf("find the host: %w", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("find the host: %w", err)
		}
		if strings.TrimSpace(string(text)) == name {
			return "/dev/" + filepath.Base(filepath.Dir(file)), nil
		}
	}
	return "", nil
}

// port is a virtio-serial port. Until the host has opened its side, reading
// from it tells the end of the file at once.
type port struct {
	*os.File
	begun bool
}

func (p *port) Read(b []byte) (int, error) {
	for {
		n, err := p.File.Read(b)
		if n > 0 {
			p.begun = true
		}
		if p.begun || !errors.Is(err, io.EOF) {
			return n, err
		}
		time.Sleep(pollEvery)
	}
}

// streams is one conversation over streams that follow each other: Firecracker
// ends all streams when it takes a snapshot, and nothing is under way then. One
// goroutine may read while others write.
type streams struct {
	accept func() (io.ReadWriteCloser, error)

	mu      sync.Mutex
	current io.ReadWriteCloser
}

func (s *streams) get() io.ReadWriteCloser {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

func (s *streams) Read(b []byte) (int, error) {
	for {
		if c := s.get(); c != nil {
			n, err := c.Read(b)
			if n > 0 || err == nil {
				return n, nil
			}
			// A reset is as good an end as any.
			_ = c.Close()
		}
		next, err := s.accept()
		if err != nil {
			return 0, err
		}
		s.mu.Lock()
		s.current = next
		s.mu.Unlock()
	}
}

func (s *streams) Write(b []byte) (int, error) {
	if c := s.get(); c != nil {
		return c.Write(b)
	}
	return 0, errors.New("write to the host: it has not connected")
}
