package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
)

// monitor is a conversation with QEMU in QMP, its machine protocol: commands
// and answers, and events whenever they come.
type monitor struct {
	conn *net.UnixConn
	// done is closed when QEMU has ended the conversation.
	done chan struct{}

	mu sync.Mutex
	// pending are the commands that have not been answered, by their ids.
	pending map[int]chan reply
	lastID  int
	// waiting are the channels that an event of a name closes.
	waiting map[string][]chan struct{}
	seen    map[string]bool
}

// message is anything that QEMU says.
type message struct {
	ID     int             `json:"id"`
	Event  string          `json:"event"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

type reply struct {
	value json.RawMessage
	err   error
}

// command is one command.
type command struct {
	ID        int    `json:"id"`
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
}

// newMonitor takes over a connection, and says first what every conversation
// begins with. The caller closes it.
func newMonitor(conn *net.UnixConn) *monitor {
	m := &monitor{
		conn: conn, done: make(chan struct{}), pending: make(map[int]chan reply),
		waiting: make(map[string][]chan struct{}), seen: make(map[string]bool),
	}
	go m.read()
	return m
}

func (m *monitor) read() {
	defer close(m.done)
	dec := json.NewDecoder(m.conn)
	for {
		var msg message
		if err := dec.Decode(&msg); err != nil {
			return
		}
		switch {
		case msg.Event != "":
			m.mu.Lock()
			m.seen[msg.Event] = true
			for _, c := range m.waiting[msg.Event] {
				close(c)
			}
			delete(m.waiting, msg.Event)
			m.mu.Unlock()
		case msg.Error != nil:
			m.answer(msg.ID, reply{err: errors.New(msg.Error.Desc)})
		case msg.Return != nil:
			m.answer(msg.ID, reply{value: msg.Return})
		}
	}
}

// answer hands a reply to whoever still waits for it.
func (m *monitor) answer(id int, r reply) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.pending[id]; c != nil {
		c <- r
		delete(m.pending, id)
	}
}

// event returns a channel that is closed when the next event of that name comes.
func (m *monitor) event(name string) <-chan struct{} {
	c := make(chan struct{})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiting[name] = append(m.waiting[name], c)
	return c
}

// had reports whether an event of that name has come.
func (m *monitor) had(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen[name]
}

// run sends commands in one go, with descriptors for the first, and returns the
// answer to the last.
func (m *monitor) run(ctx context.Context, oob []byte, commands ...command) (json.RawMessage, error) {
	var text []byte
	answers := make([]chan reply, len(commands))
	m.mu.Lock()
	for i := range commands {
		m.lastID++
		commands[i].ID = m.lastID
		answers[i] = make(chan reply, 1)
		m.pending[m.lastID] = answers[i]
	}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, c := range commands {
			delete(m.pending, c.ID)
		}
	}()
	for _, c := range commands {
		b, err := json.Marshal(c)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.Execute, err)
		}
		text = append(text, b...)
	}
	if _, _, err := m.conn.WriteMsgUnix(text, oob, nil); errors.Is(err, syscall.EPIPE) {
		return nil, fmt.Errorf("%s: %w", commands[0].Execute, errEnded)
	} else if err != nil {
		return nil, fmt.Errorf("%s: %w", commands[0].Execute, err)
	}
	var last json.RawMessage
	for i, c := range commands {
		select {
		case r := <-answers[i]:
			if r.err != nil {
				return nil, fmt.Errorf("%s: %w", c.Execute, r.err)
			}
			last = r.value
		case <-m.done:
			return nil, fmt.Errorf("%s: %w", c.Execute, errEnded)
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w", c.Execute, context.Cause(ctx))
		}
	}
	return last, nil
}

var errEnded = errors.New("QEMU has ended")
