package coordinator

import (
	"sync"
	"time"

	"github.com/volley-run/volley/sprocket/stage"
)

// Stats is the state of a run at one moment.
type Stats struct {
	Nodes []NodeStats
	// Workers is how many are connected; Lost how many ended unasked.
	Workers, Lost int
	// Replayed is how many tasks were taken from the journal.
	Replayed int
	Elapsed  time.Duration
	// The time of all workers together, as in thesis figure 2.6: at work,
	// reading and writing stores, and waiting for something to do.
	Process, ReadWrite, Wait time.Duration
	BytesRead, BytesWritten  int64
}

// NodeStats is the progress of one node.
type NodeStats struct {
	Name string
	// Done and Running count tasks; Total is -1 while it is not known.
	Done, Running, Total int
	// Frames counts those of finished tasks and of running ones so far.
	Frames int64
}

// stats collects what Stats reports. The coordinator's goroutine writes; others
// read the last published copy.
type stats struct {
	begun              time.Time
	alive              time.Duration // of workers that are gone
	process, readWrite time.Duration
	lost, replayed     int
	read, written      int64
	frames             map[int]int64

	mu   sync.Mutex
	last Stats
}

func (s *stats) spent(at step, d time.Duration) {
	if at == stepProcess {
		s.process += d
	} else {
		s.readWrite += d
	}
}

func (s *stats) add(n *nodeState, res stage.Result) {
	if s.frames == nil {
		s.frames = map[int]int64{}
	}
	s.frames[n.index] += int64(res.Frames)
	s.read += res.BytesRead
	s.written += res.BytesWritten
}

// publishStats makes the present state visible to Stats.
func (c *Coordinator) publishStats() {
	s := &c.stats
	out := Stats{
		Lost: s.lost, Replayed: s.replayed, Elapsed: time.Since(s.begun),
		Process: s.process, ReadWrite: s.readWrite, BytesRead: s.read, BytesWritten: s.written,
	}
	running := map[int]int64{}
	alive := s.alive
	for _, w := range c.workers {
		if w.sess == nil {
			continue
		}
		out.Workers++
		alive += time.Since(w.since)
		if w.task != nil {
			running[w.task.node.index] += w.task.frames
		}
	}
	out.Wait = max(0, alive-s.process-s.readWrite)
	for _, n := range c.nodes {
		out.Nodes = append(out.Nodes, NodeStats{
			Name: n.name, Done: int(n.done), Running: n.running, Total: int(n.total), Frames: s.frames[n.index] + running[n.index],
		})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = out
}

// Stats returns the state of the run. It may be called at any time from any
// goroutine.
func (c *Coordinator) Stats() Stats {
	c.stats.mu.Lock()
	defer c.stats.mu.Unlock()
	return c.stats.last
}
