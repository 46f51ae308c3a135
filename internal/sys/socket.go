package sys

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
)

// ListenUnix listens on a unix socket at a path of any length (on other systems
// than Linux, of about a hundred bytes). The socket stays there when the listener
// is closed: the caller removes it.
func ListenUnix(path string) (l *net.UnixListener, err error) {
	err = withShortPath(path, func(short string) error {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
		return err
	})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // by then, its short path may be another's
	return l, nil
}

// DialUnix connects to a unix socket at a path as ListenUnix takes it.
func DialUnix(ctx context.Context, path string) (conn net.Conn, err error) {
	err = withShortPath(path, func(short string) error {
		conn, err = new(net.Dialer).DialContext(ctx, "unix", short)
		return err
	})
	return conn, err
}

// maxSocketPath is how long the path of a unix socket may be for the kernel, in
// bytes.
const maxSocketPath = 107

// withShortPath calls f with a path that leads where path does, and is short as
// long as the name of the socket itself is. What net says of it in an error, it
// says of path.
func withShortPath(path string, f func(short string) error) error {
	if len(path) <= maxSocketPath || runtime.GOOS != "linux" {
		return f(path)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	err = f(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
	if op, ok := errors.AsType[*net.OpError](err); ok {
		op.Addr = &net.UnixAddr{Name: path, Net: "unix"}
	}
	return err
}
