package delivery

import (
	"cmp"
	"slices"

	"github.com/volley-run/volley/sprocket"
)

// all makes one task of everything, when all ports have ended.
type all struct {
	ports ports
	held  [][]sprocket.Item // by port
	total int64
}

func newAll(n int, _ Options) (Func, error) {
	return &all{ports: newPorts(n), held: make([][]sprocket.Item, n), total: -1}, nil
}

func (a *all) Deliver(port int, it sprocket.Item) ([]Delivery, error) {
	if err := a.ports.arrive(port, it); err != nil {
		return nil, err
	}
	a.held[port] = append(a.held[port], it)
	return nil, nil
}

func (a *all) Close(port int, count int64) ([]Delivery, error) {
	if err := a.ports.close(port, count); err != nil {
		return nil, err
	}
	if !a.ports.allClosed() {
		return nil, nil
	}
	inputs := a.held
	a.held, a.total = nil, 0
	items := 0
	for _, list := range inputs {
		slices.SortFunc(list, func(a, b sprocket.Item) int { return cmp.Compare(a.Seq, b.Seq) })
		items += len(list)
	}
	if items == 0 {
		return nil, nil
	}
	a.total = 1
	return []Delivery{{Seq: 0, Inputs: inputs}}, nil
}

func (a *all) Total() int64 { return a.total }
