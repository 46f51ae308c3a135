package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// Conn is the stream to and from volley-init. Close must make a blocked Read
// return.
type Conn struct {
	io.Reader // what volley-init writes: its standard output
	io.Writer // what volley-init reads: its standard input
	io.Closer
}

// Pipes are two pipes for a volley-init that is started as a process or as a
// container's first process.
type Pipes struct {
	// Host is this end. Whoever uses it closes it; Start does.
	Host Conn
	// Stdin and Stdout go to the process. Close them here once it runs, with
	// CloseRemote.
	Stdin, Stdout *os.File
}

// NewPipes makes the pipes.
func NewPipes() (*Pipes, error) {
	stdin, toInit, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe to volley-init: %w", err)
	}
	fromInit, stdout, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make pipe from volley-init: %w", err), stdin.Close(), toInit.Close())
	}
	return &Pipes{
		Host:  Conn{Reader: fromInit, Writer: toInit, Closer: bothClosers{toInit, fromInit}},
		Stdin: stdin, Stdout: stdout,
	}, nil
}

// CloseRemote closes this process's copies of the ends that volley-init has.
func (p *Pipes) CloseRemote() error {
	return errors.Join(p.Stdin.Close(), p.Stdout.Close())
}

// bothClosers closes two things, of which some may be closed already.
type bothClosers [2]io.Closer

func (b bothClosers) Close() error {
	var errs []error
	for _, c := range b {
		if err := c.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
