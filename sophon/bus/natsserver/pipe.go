package natsserver

import (
	"net"
	"sync"
)

const (
	// pipeBufferBytes bounds what waits to be read from a connection inside
	// this process.
	pipeBufferBytes = 256 << 20
	// pipeReadBytes is how much is moved at a time.
	pipeReadBytes = 64 << 10
	// pipeSpareBytes is the size of buffer that is kept for what comes next.
	pipeSpareBytes = 4 << 20
)

// bufferedConn is one end of a net.Pipe, with a buffer for what the other end
// writes. Without it every write waits for a read; and as server and client
// both write where they should read, each could wait for the other.
type bufferedConn struct {
	net.Conn
	filled chan struct{} // closed when fill has returned

	mu      sync.Mutex
	changed *sync.Cond
	arrived []byte // follows what is in current
	closed  bool
	err     error // why no more arrives

	reading sync.Mutex
	current []byte // guarded by reading, as is its unread part
	unread  []byte
}

func newBufferedConn(conn net.Conn) *bufferedConn {
	c := &bufferedConn{Conn: conn, filled: make(chan struct{})}
	c.changed = sync.NewCond(&c.mu)
	go c.fill()
	return c
}

// fill moves what the other end writes to the buffer until the connection ends.
func (c *bufferedConn) fill() {
	defer close(c.filled)
	chunk := make([]byte, pipeReadBytes)
	for {
		n, err := c.Conn.Read(chunk)
		if !c.put(chunk[:n], err) {
			return
		}
	}
}

// put adds to the buffer, and tells whether there is more to come.
func (c *bufferedConn) put(data []byte, err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.arrived) >= pipeBufferBytes && !c.closed {
		c.changed.Wait()
	}
	c.arrived = append(c.arrived, data...)
	c.err = err
	c.changed.Broadcast()
	return err == nil && !c.closed
}

// Read returns what has arrived, or waits for it.
func (c *bufferedConn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if len(c.unread) == 0 {
		if err := c.swap(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.unread)
	c.unread = c.unread[n:]
	return n, nil
}

// swap waits for something to arrive and makes that what is unread.
func (c *bufferedConn) swap() error {
	if cap(c.current) > pipeSpareBytes {
		c.current = nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.arrived) == 0 {
		if c.closed {
			return net.ErrClosed
		}
		if c.err != nil {
			return c.err
		}
		c.changed.Wait()
	}
	c.current, c.arrived = c.arrived, c.current[:0]
	c.unread = c.current
	c.changed.Broadcast()
	return nil
}

// Close ends the connection. It is idempotent.
func (c *bufferedConn) Close() error {
	err := c.Conn.Close()
	c.mu.Lock()
	c.closed = true
	c.changed.Broadcast()
	c.mu.Unlock()
	<-c.filled
	return err
}
