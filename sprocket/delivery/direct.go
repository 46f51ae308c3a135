package delivery

import "github.com/volley-run/volley/sprocket"

// direct makes each item a task, at once: item n is task n even if item n-1
// has not come.
type direct struct {
	ports ports
}

func newDirect(n int, _ Options) (Func, error) {
	if err := needOnePort(n); err != nil {
		return nil, err
	}
	return &direct{ports: newPorts(n)}, nil
}

func (d *direct) Deliver(port int, it sprocket.Item) ([]Delivery, error) {
	if err := d.ports.arrive(port, it); err != nil {
		return nil, err
	}
	return []Delivery{{Seq: it.Seq, Inputs: [][]sprocket.Item{{it}}}}, nil
}

func (d *direct) Close(port int, count int64) ([]Delivery, error) {
	return nil, d.ports.close(port, count)
}

func (d *direct) Total() int64 { return d.ports.total() }
