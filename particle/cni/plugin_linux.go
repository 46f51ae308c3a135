package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/volley-run/volley/particle"
	"github.com/volley-run/volley/particle/rtnl"
)

// Add attaches a container to the network and returns what it got, in the
// version of the configuration. After an error nothing is left of it.
func Add(ctx context.Context, args *skel.CmdArgs) (result types.Result, err error) {
	conf, err := ParseConfig(args.StdinData, args.Args)
	if err != nil {
		return nil, err
	}
	if err := checkNamespace(args.Netns); err != nil {
		return nil, err
	}
	err = within(ctx, conf, func(s *session) error {
		result, err = s.add(ctx, args)
		return err
	})
	if err != nil {
		return nil, err
	}
	return result, nil
}

// checkNamespace returns an error with a code if there is no namespace at path.
func checkNamespace(path string) error {
	ns, err := rtnl.Open(path)
	if err == nil {
		return ns.Close()
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, rtnl.ErrNotNamespace) {
		return types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("CNI_NETNS: %v", err), "the runtime has to make the namespace before it calls plugins")
	}
	return cniError(err)
}

func (s *session) add(ctx context.Context, args *skel.CmdArgs) (result types.Result, err error) {
	nw, err := s.declare(ctx, args.Netns, args.IfName)
	if err != nil {
		left, openErr := s.open()
		if left != nil {
			openErr = s.closeUnused(context.WithoutCancel(ctx), left)
		}
		return nil, errors.Join(err, openErr)
	}
	owner := s.owner(args.ContainerID, args.IfName)
	defer func() {
		if err == nil {
			return
		}
		undo := context.WithoutCancel(ctx)
		err = errors.Join(err, s.free(undo, nw, owner), s.closeUnused(undo, nw))
	}()
	ep, err := s.acquire(ctx, nw, owner)
	if err != nil {
		return nil, err
	}
	if s.conf.Mode == ModeNamespace {
		err = nw.Attach(ctx, ep.Index, args.Netns, args.IfName)
	} else {
		err = s.enroll(ctx, nw, ep, owner)
	}
	if err != nil {
		return nil, err
	}
	own, err := s.describe(ctx, nw, ep, args)
	if err != nil {
		return nil, err
	}
	return s.chain(own)
}

// acquire takes the endpoint that is asked for, or any.
func (s *session) acquire(ctx context.Context, nw *particle.Network, owner string) (particle.Endpoint, error) {
	if len(s.conf.Wanted) == 0 {
		return nw.Pool().Acquire(ctx, owner)
	}
	index := -1
	for _, a := range s.conf.Wanted {
		i, ok := nw.Spec().IndexOf(a)
		if !ok {
			return particle.Endpoint{}, types.NewError(ErrAddressTaken, fmt.Sprintf("runtimeConfig.ips: %s is no endpoint's of %s on this node", a, nw.Spec().Name), rangeOf(nw))
		}
		if index >= 0 && i != index {
			return particle.Endpoint{}, types.NewError(ErrAddressTaken, fmt.Sprintf("runtimeConfig.ips: %s and %s are not of the same endpoint", s.conf.Wanted[0], a), "ask for one of them")
		}
		index = i
	}
	ep, err := nw.Pool().AcquireIndex(ctx, owner, index)
	if errors.Is(err, particle.ErrEndpointTaken) {
		return ep, types.NewError(ErrAddressTaken, fmt.Sprintf("runtimeConfig.ips: %s is in use, or the container has another one", s.conf.Wanted[0]), "ask for another address, or for none")
	}
	return ep, err
}

// rangeOf says which addresses there are.
func rangeOf(nw *particle.Network) string {
	spec := nw.Spec()
	var texts []string
	for _, node := range []netip.Prefix{spec.NodePrefix, spec.NodePrefix6} {
		if node.IsValid() && spec.Endpoints > 0 {
			texts = append(texts, fmt.Sprintf("%s to %s", particle.EndpointAddr(node, 0), particle.EndpointAddr(node, spec.Endpoints-1)))
		}
	}
	return "there are " + strings.Join(texts, " and ")
}

// describe says what a container has.
func (s *session) describe(ctx context.Context, nw *particle.Network, ep particle.Endpoint, args *skel.CmdArgs) (*current.Result, error) {
	status, err := nw.Status(ctx)
	if err != nil {
		return nil, err
	}
	link, err := linkOf(args.Netns, args.IfName)
	if err != nil {
		return nil, err
	}
	spec := nw.Spec()
	r := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{{Name: args.IfName, Mac: link.MAC.String(), Mtu: status.MTU, Sandbox: args.Netns}},
		DNS:        s.conf.DNS,
	}
	for _, f := range []struct {
		address netip.Addr
		whole   netip.Prefix
	}{{ep.Address, spec.Prefix}, {ep.Address6, spec.Prefix6}} {
		if !f.address.IsValid() {
			continue
		}
		bits := f.address.BitLen()
		if s.conf.Mode == ModeNamespace {
			bits = f.whole.Bits()
			r.Routes = append(r.Routes, &types.Route{Dst: ipNet(f.whole)})
		}
		r.IPs = append(r.IPs, &current.IPConfig{Interface: current.Int(0), Address: ipNet(netip.PrefixFrom(f.address, bits))})
	}
	return r, nil
}

func linkOf(netns, ifName string) (link rtnl.Link, err error) {
	err = inNamespace(netns, func(c *rtnl.Conn) error {
		link, err = c.Link(ifName)
		return err
	})
	return link, err
}

// inNamespace calls f with a connection to the namespace at path.
func inNamespace(path string, f func(c *rtnl.Conn) error) error {
	ns, err := rtnl.Open(path)
	if err != nil {
		return err
	}
	c, err := ns.Dial()
	if err != nil {
		return errors.Join(err, ns.Close())
	}
	return errors.Join(f(c), c.Close(), ns.Close())
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// chain adds what a container has to what earlier plugins gave it, in the
// version of the configuration.
func (s *session) chain(own *current.Result) (types.Result, error) {
	if s.conf.PrevResult != nil {
		before, err := current.NewResultFromResult(s.conf.PrevResult)
		if err != nil {
			return nil, invalid("prevResult", "%v", err)
		}
		for _, ip := range own.IPs {
			ip.Interface = current.Int(*ip.Interface + len(before.Interfaces))
		}
		own.Interfaces = append(before.Interfaces, own.Interfaces...)
		own.IPs = append(before.IPs, own.IPs...)
		own.Routes = append(before.Routes, own.Routes...)
		if own.DNS.IsEmpty() {
			own.DNS = before.DNS
		}
	}
	return own.GetAsVersion(s.conf.CNIVersion)
}

// Del gives back what a container has. It is no error if there is nothing, nor
// if its namespace is gone.
func Del(ctx context.Context, args *skel.CmdArgs) error {
	conf, err := ParseConfig(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	return within(ctx, conf, func(s *session) error {
		nw, err := s.open()
		if nw == nil || err != nil {
			return err
		}
		if err := s.free(ctx, nw, s.owner(args.ContainerID, args.IfName)); err != nil {
			return err
		}
		return s.closeUnused(ctx, nw)
	})
}

// open opens the network, or returns nil if there is none.
func (s *session) open() (*particle.Network, error) {
	nw, err := s.node.Open(s.conf.JobName())
	if errors.Is(err, particle.ErrNotFound) {
		return nil, errors.Join(s.expelAll(), removeFile(s.mark()))
	}
	return nw, err
}

// GC gives back what containers have that are not among the valid attachments of
// the configuration, and removes what interrupted calls have left. Without a
// list of valid attachments, as by cnitool, no container loses anything.
func GC(ctx context.Context, args *skel.CmdArgs) error {
	conf, err := ParseConfig(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	return within(ctx, conf, func(s *session) error {
		if err := s.collect(ctx); err != nil {
			return err
		}
		if _, err := s.node.GC(ctx); err != nil {
			return err
		}
		_, err := s.open()
		return err
	})
}

func (s *session) collect(ctx context.Context) error {
	nw, err := s.open()
	if nw == nil || err != nil {
		return err
	}
	valid := map[string]bool{}
	for _, a := range s.conf.valid {
		valid[s.owner(a.ContainerID, a.IfName)] = true
	}
	owners, err := nw.Pool().Owners()
	if err != nil {
		return err
	}
	var errs []error
	for owner := range owners {
		if s.conf.valid != nil && strings.HasPrefix(owner, s.ownerPrefix()) && !valid[owner] {
			errs = append(errs, s.free(ctx, nw, owner))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return s.closeUnused(ctx, nw)
}
