package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/google/uuid"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/sandbox"
)

// attachment is the network device that a request asks for: a tap, or a place on
// the network of a job. Its methods may be called if it is nil, which is none.
type attachment struct {
	device *vmm.Network
	job    string
	place  sandbox.Place
	// giveBack gives the place back; nil if there is none.
	giveBack func()
}

// attach finds the device, or takes the place. The caller calls leave once no
// machine has it.
func (s *Server) attach(ctx context.Context, n *Network) (*attachment, error) {
	switch {
	case n == nil:
		return nil, nil
	case n.Address != "" || n.Address6 != "":
		return nil, invalid(errors.New("network: addresses come from the job's network, not from the request"))
	case n.Job == "":
		device, err := n.device()
		if err != nil {
			return nil, err
		}
		return &attachment{device: device}, nil
	case n.Tap != "" || n.Namespace != "" || n.MAC != "":
		return nil, invalid(errors.New("network: job excludes tap, namespace and mac"))
	case s.cfg.Networks == nil:
		return nil, invalid(errors.New("network: there are no networks of jobs here"))
	}
	id := uuid.NewString()
	place, err := s.cfg.Networks.Join(ctx, n.Job, id)
	if err != nil {
		return nil, err
	}
	return &attachment{job: n.Job, place: place, giveBack: func() {
		ctx, cancel := context.WithTimeout(context.Background(), leaveTime)
		defer cancel()
		if err := s.cfg.Networks.Leave(ctx, n.Job, id); err != nil {
			s.cfg.Log.Warn("give a place on a network back", "network", n.Job, "err", err)
		}
	}}, nil
}

// leaveTime bounds giving a place on a network back.
const leaveTime = 10 * time.Second

// use makes it the device of machines that are started.
func (a *attachment) use(o *faasnap.StartOptions) {
	switch {
	case a == nil:
	case a.device != nil:
		o.Network = a.device
	default:
		o.Join(a.place)
	}
}

// tell adds to an answer where the device is.
func (a *attachment) tell(n *Network) {
	n.Job = a.job
	if a.place.Address.IsValid() {
		n.Address = a.place.Address.String()
	}
	if a.place.Address6.IsValid() {
		n.Address6 = a.place.Address6.String()
	}
}

func (a *attachment) leave() {
	if a != nil && a.giveBack != nil {
		a.giveBack()
	}
}

// device returns the tap that a request names.
func (n *Network) device() (*vmm.Network, error) {
	if n.Tap == "" {
		return nil, invalid(errors.New("network: name a tap, which must be there already, or a job"))
	}
	d := &vmm.Network{Namespace: n.Namespace, Tap: n.Tap}
	if n.MAC != "" {
		mac, err := net.ParseMAC(n.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return nil, invalid(fmt.Errorf("network: %q is no address of one device, such as 02:00:00:00:00:01", n.MAC))
		}
		d.MAC = mac
	}
	return d, nil
}
