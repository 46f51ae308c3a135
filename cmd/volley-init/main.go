//go:build unix

// Command volley-init is the agent in a sandbox: process 1 of a container or a
// virtual machine, or a plain child of the invoker. It runs one function.
//
// It is told by the host what to run (package frame describes the
// conversation, over standard input and output), serves the AWS Lambda Runtime
// API to the function, captures what it writes by line, reaps every orphan, and
// ends the function and all that it started when a deadline passes, when the
// host says so, or when the host is gone. Its own troubles go to standard
// error; it takes no arguments.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox/agent/frame"
)

func main() {
	machine := inMachine()
	err := run(machine)
	if err != nil {
		fmt.Fprintf(os.Stderr, "volley-init: %v\n", err)
	}
	if machine {
		endMachine()
	}
	if err != nil {
		os.Exit(1)
	}
}

// run serves one function from its start to its end.
func run(machine bool) (err error) {
	if machine {
		defer func() {
			// The kernel does not survive process 1.
			if r := recover(); r != nil {
				err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
			}
		}()
	}
	// One function makes one request at a time: a second thread would only cost
	// wake-ups. Collecting seldom costs little where the heap is this small.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(200)
	if err := sys.ForbidTracing(); err != nil {
		return err
	}
	if err := sys.AdoptOrphans(); err != nil {
		return err
	}
	host, toHost, err := streamsToHost(machine)
	if err != nil {
		return err
	}
	dec := frame.NewDecoder(host)
	boot, err := readBoot(dec)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:"+strconv.Itoa(boot.Port))
	if err != nil {
		return fmt.Errorf("serve the Runtime API: %w", err)
	}
	enc := frame.NewEncoder(toHost)
	logs, err := newLogs(enc, boot.MaxLogLines, boot.MaxLogBytes)
	if err != nil {
		return err
	}
	s := newSession(boot, enc, logs)
	if machine {
		if s.restorer, err = newRestorer(); err != nil {
			return err
		}
		shortcut, err := listenShortcut()
		if err != nil {
			return err
		}
		go serve(shortcut, s)
		boot.Env = append(boot.Env, "VOLLEY_RUNTIME_SOCKET="+shortcutFile)
		if boot.Network != nil {
			if err := connect(boot.Network); err != nil {
				return err
			}
			boot.Env = append(boot.Env, boot.Network.Env()...)
		}
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		s.end(frame.Exit{Reason: frame.ReasonShutdown})
	}()
	f, err := startFunction(boot, listener.Addr().String(), logs, s.processEnded)
	if err != nil {
		return enc.JSON(frame.TypeExited, frame.Exit{Reason: frame.ReasonStart, Detail: err.Error()})
	}
	go serve(listener, s)
	go s.listen(dec)
	return s.finish(f)
}

// streamsToHost returns the two sides of the conversation. In a virtual machine
// it makes a running system of it first.
func streamsToHost(machine bool) (io.Reader, io.Writer, error) {
	if !machine {
		return takeStreams()
	}
	if err := startMachine(); err != nil {
		return nil, nil, err
	}
	if err := sys.CloseOnExecFrom(3); err != nil {
		return nil, nil, err
	}
	host, err := hostStream()
	return host, host, err
}

// takeStreams moves the conversation away from standard input and output, where
// the function or a stray print could get at it, and returns its two sides.
func takeStreams() (host io.Reader, toHost io.Writer, err error) {
	if err := sys.CloseOnExecFrom(3); err != nil {
		return nil, nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("replace standard streams: %w", err)
	}
	defer null.Close()
	var files [2]*os.File
	for fd := range files {
		moved, err := sys.MoveDescriptor(fd, int(null.Fd()))
		if err != nil {
			return nil, nil, err
		}
		// The runtime's poller waits for what does not block, without holding
		// a thread.
		if err := syscall.SetNonblock(moved, true); err != nil {
			return nil, nil, fmt.Errorf("replace standard streams: %w", err)
		}
		files[fd] = os.NewFile(uintptr(moved), "host")
	}
	return files[0], files[1], nil
}

// readBoot takes the first frame.
func readBoot(dec *frame.Decoder) (frame.Boot, error) {
	t, body, err := dec.Next()
	if err != nil {
		return frame.Boot{}, fmt.Errorf("read what to run: %w", err)
	}
	if t != frame.TypeBoot {
		return frame.Boot{}, fmt.Errorf("read what to run: %w: got type %q first", frame.ErrMalformed, t)
	}
	var boot frame.Boot
	if err := json.Unmarshal(body, &boot); err != nil {
		return frame.Boot{}, fmt.Errorf("read what to run: %w", err)
	}
	if len(boot.Argv) == 0 {
		return frame.Boot{}, errors.New("read what to run: it names no program")
	}
	boot.SetDefaults()
	return boot, nil
}
