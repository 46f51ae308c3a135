// Guest is process 1 of the virtual machines that drivers are tested with. It
// loads the modules of its initrd (see package faasnap/guest) and answers lines
// on the virtio port of the agent:
//
//	echo TEXT    TEXT
//	fill N       ok, after writing what depends on the number N to a part of a
//	             buffer
//	sum          a digest of the buffer, hexadecimal
//	list DIR     the names in a directory
//	off          nothing: the guest switches itself off
//
// It needs Linux.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/volley-run/volley/internal/sys"
)

const (
	bufferBytes = 64 << 20
	// pageWords is a page, partPages how many pages of the buffer are filled or
	// left alone together.
	pageWords = 4096 / 8
	partPages = 24
	agentPort = "org.volley.agent"
)

func main() {
	err := run()
	fmt.Println("guest:", err)
	_ = sys.PowerOff(false) // there is nobody to tell
	select {}
}

func run() error {
	debug.SetGCPercent(-1) // the buffer is all that there is
	for _, m := range []struct{ fstype, target string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := sys.MountFS(m.fstype, m.fstype, m.target, sys.MountFlags{}, ""); err != nil {
			return err
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	defer port.Close()
	buffer := make([]uint64, bufferBytes/8)
	fill(buffer, 0, 0)
	fmt.Println("guest: ready")
	requests := bufio.NewReader(port)
	for {
		line, err := requests.ReadString('\n')
		if err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		what, argument, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if what == "off" {
			return errors.New("told to end")
		}
		if _, err := fmt.Fprintln(port, answer(buffer, what, argument)); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
}

func answer(buffer []uint64, what, argument string) string {
	switch what {
	case "echo":
		return argument
	case "fill":
		n, err := strconv.ParseUint(argument, 10, 32)
		if err != nil {
			return err.Error()
		}
		fill(buffer, int(n%4), n+1)
		return "ok"
	case "sum":
		return sum(buffer)
	case "list":
		entries, err := os.ReadDir(argument)
		if err != nil {
			return err.Error()
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return strings.Join(names, " ")
	}
	return "what?"
}

// fill writes to every fourth part of the buffer, from the first-th on, what
// depends on a seed. Pages that nothing was written to are zero.
func fill(buffer []uint64, first int, seed uint64) {
	const part = partPages * pageWords
	for at := first * part; at < len(buffer); at += 4 * part {
		x := seed*0x9e3779b97f4a7c15 + uint64(at)
		for i := range buffer[at:min(len(buffer), at+part)] {
			x = x*6364136223846793005 + 1442695040888963407
			buffer[at+i] = x
		}
	}
}

func sum(buffer []uint64) string {
	h := uint64(1)
	for _, w := range buffer {
		h = (bits.RotateLeft64(h, 5) ^ w) * 0x9e3779b97f4a7c15
	}
	return fmt.Sprintf("%016x", h)
}

// loadModules loads all modules that there are devices for on a PC.
func loadModules() error {
	list, err := os.ReadFile("/modules")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(list)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || len(fields) == 2 && fields[1] == "mmio" {
			continue
		}
		if err := loadModule(fields[0]); err != nil {
			return err
		}
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return sys.LoadModule(f)
}

// openPort opens the port of the agent, once it is there and the host too.
func openPort() (*os.File, error) {
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if text, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(text)) == agentPort {
				return os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(name))), os.O_RDWR, 0)
			}
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("find port %s: %w", agentPort, fs.ErrNotExist)
		}
	}
}
