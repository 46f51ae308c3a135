package delivery

import (
	"fmt"

	"github.com/volley-run/volley/sprocket"
)

// pair joins the items of the same place in every stream, each group as soon as
// it is complete (thesis 2.2.5). It ends with the shortest stream.
type pair struct {
	ports   ports
	held    map[int64]*group // by Seq
	dropped int64
}

// group is what has come for one task.
type group struct {
	inputs [][]sprocket.Item
	have   int
}

func newPair(n int, _ Options) (Func, error) {
	return &pair{ports: newPorts(n), held: make(map[int64]*group)}, nil
}

func (p *pair) Deliver(port int, it sprocket.Item) ([]Delivery, error) {
	if err := p.ports.arrive(port, it); err != nil {
		return nil, err
	}
	if it.Seq >= p.ports.shortest() {
		p.dropped++
		return nil, nil
	}
	g := p.held[it.Seq]
	if g == nil {
		g = &group{inputs: make([][]sprocket.Item, len(p.ports))}
		p.held[it.Seq] = g
	}
	g.inputs[port] = []sprocket.Item{it}
	g.have++
	if g.have < len(g.inputs) {
		return nil, nil
	}
	delete(p.held, it.Seq)
	// Checked here and not earlier: an incomplete group may yet be surplus,
	// and whether there is an error must not depend on the order of arrival.
	if err := checkAligned(g.inputs); err != nil {
		return nil, err
	}
	return []Delivery{{Seq: it.Seq, Inputs: g.inputs}}, nil
}

func (p *pair) Close(port int, count int64) ([]Delivery, error) {
	if err := p.ports.close(port, count); err != nil {
		return nil, err
	}
	end := p.ports.shortest()
	for seq, g := range p.held {
		if seq >= end {
			p.dropped += int64(g.have)
			delete(p.held, seq)
		}
	}
	return nil, nil
}

func (p *pair) Total() int64 { return p.ports.total() }

// Dropped implements Dropper.
func (p *pair) Dropped() int64 { return p.dropped }

// checkAligned returns an error unless the one item of every port is of the
// same chunk and the same time.
func checkAligned(inputs [][]sprocket.Item) error {
	a := inputs[0][0]
	for port, list := range inputs {
		b := list[0]
		if a.Start != b.Start || a.End != b.End {
			return fmt.Errorf("pair item %d: port 0 covers %d to %d but port %d covers %d to %d",
				a.Seq, a.Start, a.End, port, b.Start, b.End)
		}
		if a.Chunk != b.Chunk {
			return fmt.Errorf("pair item %d: at %d to %d, port 0 is of chunk %d but port %d is of chunk %d",
				a.Seq, a.Start, a.End, a.Chunk, port, b.Chunk)
		}
	}
	return nil
}

// anyPair joins the n-th arrivals of every stream, whatever their times. It
// ends with the shortest stream.
type anyPair struct {
	ports   ports
	queues  [][]sprocket.Item // by port, in order of arrival
	tasks   int64
	dropped int64
}

func newAnyPair(n int, _ Options) (Func, error) {
	return &anyPair{ports: newPorts(n), queues: make([][]sprocket.Item, n)}, nil
}

func (a *anyPair) Deliver(port int, it sprocket.Item) ([]Delivery, error) {
	if err := a.ports.arrive(port, it); err != nil {
		return nil, err
	}
	a.queues[port] = append(a.queues[port], it)
	a.dropSurplus()
	for _, q := range a.queues {
		if len(q) == 0 {
			return nil, nil
		}
	}
	d := Delivery{Seq: a.tasks, Inputs: make([][]sprocket.Item, len(a.queues))}
	for i, q := range a.queues {
		d.Inputs[i] = []sprocket.Item{q[0]}
		q[0] = sprocket.Item{} // the array outlives the queue's head
		a.queues[i] = q[1:]
	}
	a.tasks++
	return []Delivery{d}, nil
}

func (a *anyPair) Close(port int, count int64) ([]Delivery, error) {
	if err := a.ports.close(port, count); err != nil {
		return nil, err
	}
	a.dropSurplus()
	return nil, nil
}

func (a *anyPair) Total() int64 { return a.ports.total() }

// Dropped implements Dropper.
func (a *anyPair) Dropped() int64 { return a.dropped }

// dropSurplus shortens every queue to what can still become a task.
func (a *anyPair) dropSurplus() {
	left := a.ports.shortest() - a.tasks
	for i, q := range a.queues {
		if surplus := int64(len(q)) - left; surplus > 0 {
			a.dropped += surplus
			clear(q[left:])
			a.queues[i] = q[:left]
		}
	}
}
