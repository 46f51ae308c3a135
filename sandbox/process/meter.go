//go:build unix

package process

import (
	"sync"
	"time"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox"
)

// measureEvery is how often peak looks at most: looking costs as much as a
// warm invocation does otherwise.
const measureEvery = 250 * time.Millisecond

// meter measures what the processes below volley-init use.
type meter struct {
	init int // process id

	mu    sync.Mutex
	at    time.Time
	bytes int64
}

func newMeter(init int) *meter { return &meter{init: init} }

// peak returns the most memory that the function was seen to use.
func (m *meter) peak() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := time.Now(); now.Sub(m.at) >= measureEvery {
		m.at = now
		for _, pid := range sys.Children(m.init) {
			if u, ok := sys.Usage(pid); ok {
				m.bytes = max(m.bytes, u.MaxMemoryBytes)
			}
		}
	}
	return m.bytes
}

// usage adds up what all processes use now.
func (m *meter) usage() (sandbox.Usage, error) {
	pids, err := sys.Descendants(m.init)
	if err != nil {
		return sandbox.Usage{}, err
	}
	var total sandbox.Usage
	for _, pid := range pids {
		if u, ok := sys.Usage(pid); ok {
			total.Processes++
			total.MemoryBytes += u.MemoryBytes
			total.MaxMemoryBytes += u.MaxMemoryBytes
			total.CPU += u.CPU
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes = max(m.bytes, total.MaxMemoryBytes)
	total.MaxMemoryBytes = m.bytes
	return total, nil
}
