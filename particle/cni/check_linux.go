package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/volley-run/volley/particle"
	"github.com/volley-run/volley/particle/rtnl"
)

// Check returns an error if a container has not, or not any more, what Add said
// it has: its endpoint, and in its namespace the interface, the addresses and
// the routes.
func Check(ctx context.Context, args *skel.CmdArgs) error {
	conf, err := ParseConfig(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	if conf.PrevResult == nil {
		return invalid("prevResult", "is missing: CHECK compares with it")
	}
	if err := checkNamespace(args.Netns); err != nil {
		return err
	}
	before, err := current.NewResultFromResult(conf.PrevResult)
	if err != nil {
		return invalid("prevResult", "%v", err)
	}
	return within(ctx, conf, func(s *session) error { return s.check(before, args) })
}

// differs says what CHECK has found.
func differs(format string, args ...any) error {
	return types.NewError(ErrNotAsAdded, fmt.Sprintf(format, args...), "remove the container's attachment and add it again")
}

func (s *session) check(before *current.Result, args *skel.CmdArgs) error {
	nw, err := s.open()
	if err != nil {
		return err
	}
	if nw == nil {
		return differs("this node has no network %s any more", s.conf.JobName())
	}
	owners, err := nw.Pool().Owners()
	if err != nil {
		return err
	}
	ep, ok := owners[s.owner(args.ContainerID, args.IfName)]
	if !ok {
		return types.NewError(types.ErrUnknownContainer, fmt.Sprintf("container %s has no endpoint of %s on %s", args.ContainerID, nw.Spec().Name, args.IfName), "")
	}
	has, err := observe(args.Netns)
	if err != nil {
		return err
	}
	if err := has.check(before, args); err != nil {
		return err
	}
	return has.checkEndpoint(nw, ep, before, args)
}

// observed is what a namespace has.
type observed struct {
	links     []rtnl.Link
	addresses []rtnl.Address
	routes    []rtnl.Route
}

func observe(netns string) (o observed, err error) {
	err = inNamespace(netns, func(c *rtnl.Conn) (err error) {
		if o.links, err = c.Links(); err != nil {
			return err
		}
		if o.addresses, err = c.Addresses(); err != nil {
			return err
		}
		o.routes, err = c.Routes()
		return err
	})
	return o, err
}

func (o observed) link(name string) (rtnl.Link, bool) {
	i := slices.IndexFunc(o.links, func(l rtnl.Link) bool { return l.Name == name })
	if i < 0 {
		return rtnl.Link{}, false
	}
	return o.links[i], true
}

// check compares the interface with what Add said of it.
func (o observed) check(before *current.Result, args *skel.CmdArgs) error {
	i := indexOf(before, args.IfName)
	if i < 0 {
		return invalid("prevResult", "has no interface %s", args.IfName)
	}
	link, ok := o.link(args.IfName)
	switch want := before.Interfaces[i]; {
	case !ok:
		return differs("interface %s is missing in %s", args.IfName, args.Netns)
	case want.Mac != "" && link.MAC.String() != want.Mac:
		return differs("interface %s has the Ethernet address %s, not %s", args.IfName, link.MAC, want.Mac)
	case !link.Up:
		return differs("interface %s is down", args.IfName)
	}
	return nil
}

// indexOf returns which interface of a result is the container's of that name.
func indexOf(r *current.Result, ifName string) int {
	return slices.IndexFunc(r.Interfaces, func(i *current.Interface) bool { return i.Name == ifName && i.Sandbox != "" })
}

// checkEndpoint looks for an endpoint's addresses, which have to be those that
// Add said, and for the routes that go with them.
func (o observed) checkEndpoint(nw *particle.Network, ep particle.Endpoint, before *current.Result, args *skel.CmdArgs) error {
	link, _ := o.link(args.IfName)
	spec := nw.Spec()
	for _, f := range []struct{ address, node, whole netip.Prefix }{
		{prefixOf(ep.Address, spec.Prefix), spec.NodePrefix, spec.Prefix},
		{prefixOf(ep.Address6, spec.Prefix6), spec.NodePrefix6, spec.Prefix6},
	} {
		if !f.address.IsValid() {
			continue
		}
		if !told(before, f.address.Addr()) {
			return differs("the endpoint's address is %s, which prevResult does not have", f.address.Addr())
		}
		address := rtnl.Address{Link: link.Index, Prefix: f.address}
		route := rtnl.Route{To: f.whole, Link: link.Index}
		switch spec.Design {
		case particle.Consolidated:
			address.Prefix = netip.PrefixFrom(f.address.Addr(), f.address.Addr().BitLen())
			if address.Prefix.Addr().Is6() {
				loopback, _ := o.link("lo")
				address.Link = loopback.Index
			}
		case particle.AnyIP:
			node := particle.GatewayAddr(f.node)
			address.Prefix = netip.PrefixFrom(node, node.BitLen())
			route = rtnl.Route{To: f.node, Local: true}
		}
		if !slices.Contains(o.addresses, address) {
			return differs("address %s is missing in %s", address.Prefix, args.Netns)
		}
		if spec.Design != particle.Consolidated && !slices.ContainsFunc(o.routes, func(r rtnl.Route) bool {
			return r.To == route.To && r.Local == route.Local && (r.Local || r.Link == route.Link)
		}) {
			return differs("the route to %s is missing", route.To)
		}
	}
	return nil
}

// prefixOf is an address with the length of whole, or invalid if it is.
func prefixOf(a netip.Addr, whole netip.Prefix) netip.Prefix {
	if !a.IsValid() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, whole.Bits())
}

// told reports whether a result has the address.
func told(r *current.Result, a netip.Addr) bool {
	return slices.ContainsFunc(r.IPs, func(ip *current.IPConfig) bool { return ip.Address.IP.Equal(net.IP(a.AsSlice())) })
}

// Status returns an error of code types.ErrPluginNotAvailable if an ADD could
// not be served now: if the kernel or the rights lack something, the network
// could not be made or is not there, or all its endpoints are in use.
func Status(ctx context.Context, args *skel.CmdArgs) error {
	conf, err := ParseConfig(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return unavailable("the plugin is not run as root")
	}
	for _, f := range rtnl.Probe(ctx) {
		if !f.OK && needed(conf, f.Name) {
			return unavailable("the kernel lacks %s: %s", f.Name, f.Detail)
		}
	}
	err = within(ctx, conf, func(s *session) error { return s.status(ctx) })
	if wrong, ok := errors.AsType[*types.Error](err); ok && wrong.Code != types.ErrTryAgainLater {
		return types.NewError(types.ErrPluginNotAvailable, wrong.Msg, wrong.Details)
	}
	return err
}

func unavailable(format string, args ...any) error {
	return types.NewError(types.ErrPluginNotAvailable, fmt.Sprintf(format, args...), "volley net doctor says what works here")
}

// needed reports whether a network needs a feature of the kernel.
func needed(conf *Config, feature string) bool {
	switch feature {
	case rtnl.FeatureNamespaces, rtnl.FeatureVeth, rtnl.FeatureBridge, rtnl.FeatureGroups:
		return true
	}
	s := conf.Network
	if s == nil {
		return false // it is there already
	}
	switch feature {
	case rtnl.FeatureVXLAN:
		return s.Underlay.Address.IsValid()
	case rtnl.FeatureAnyIP:
		return s.Design == particle.AnyIP && s.NodePrefix.IsValid()
	case rtnl.FeatureAnyIP6:
		return s.Design == particle.AnyIP && s.NodePrefix6.IsValid()
	}
	return false
}

func (s *session) status(ctx context.Context) error {
	nw, err := s.open()
	if err != nil {
		return err
	}
	if nw == nil && s.conf.Job != "" {
		return unavailable("this node has no network %s: declare it with volley net up --name %s", s.conf.Job, s.conf.Job)
	}
	if nw == nil {
		if nw, err = s.node.Declare(*s.conf.Network); err != nil {
			return err
		}
		return nw.Preflight()
	}
	owners, err := nw.Pool().Owners()
	if err != nil {
		return err
	}
	if len(owners) >= nw.Spec().Endpoints {
		return unavailable("all %d endpoints of %s are in use", nw.Spec().Endpoints, nw.Spec().Name)
	}
	status, err := nw.Status(ctx)
	if err == nil && s.conf.Job != "" && status.State != particle.StateUp {
		err = unavailable("network %s is half made: volley net up makes it anew", nw.Spec().Name)
	}
	return err
}
