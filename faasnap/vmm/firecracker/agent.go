package firecracker

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/volley-run/volley/internal/sys"
)

const (
	// agentPort is the vsock port that the agent listens on.
	agentPort = 52
	// guestCID is the guest's address, which need not be unique: Firecracker
	// does not use the host's vsock.
	guestCID = 3
	// attempt is how long a guest may take to answer a connection before it is
	// asked again.
	attempt = 3 * time.Second
)

// connectAgent connects to the agent through the socket of Firecracker that
// stands for the guest's vsock.
func connectAgent(ctx context.Context, socket string) (_ net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	conn, err := sys.DialUnix(ctx, socket)
	if err != nil {
		return nil, fmt.Errorf("connect to the agent: %w", err)
	}
	// A deadline in the past ends reads and writes.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			_ = conn.Close() // the error that counts is there
			err = fmt.Errorf("connect to the agent at port %d: %w", agentPort, err)
		}
	}()
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", agentPort); err != nil {
		return nil, err
	}
	// What follows the line is the agent's, so nothing of it may be read.
	var line strings.Builder
	for b := []byte{0}; ; {
		if _, err := conn.Read(b); err != nil {
			return nil, err
		}
		if b[0] == '\n' {
			break
		}
		if line.WriteByte(b[0]); line.Len() > 32 {
			return nil, fmt.Errorf("firecracker answers %q: want OK", line.String())
		}
	}
	if !strings.HasPrefix(line.String(), "OK ") {
		return nil, fmt.Errorf("firecracker answers %q: want OK", line.String())
	}
	return conn, nil
}
