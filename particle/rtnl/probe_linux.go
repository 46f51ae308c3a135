package rtnl

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// Feature is something that a kernel may or may not offer.
type Feature struct {
	Name   string
	OK     bool
	Detail string // what it is for, or why it is missing
}

// The features that Probe tries.
const (
	FeatureNamespaces = "network namespaces"
	FeatureVeth       = "veth"
	FeatureBridge     = "bridge"
	FeatureVXLAN      = "vxlan"
	FeatureGroups     = "link groups"
	FeatureAnyIP      = "anyip"
	FeatureAnyIP6     = "anyip (IPv6)"
	FeatureNeighbours = "neighbour table"
)

// Probe tries what networks need, in a namespace that ends with the call.
func Probe(ctx context.Context) []Feature {
	features := []Feature{{Name: FeatureNamespaces, OK: true, Detail: "isolate a job"}}
	try := func(name, purpose string, f func() error) {
		if err := f(); err != nil {
			features = append(features, Feature{Name: name, Detail: err.Error()})
			return
		}
		features = append(features, Feature{Name: name, OK: true, Detail: purpose})
	}
	err := onThread(func() error {
		if err := enterNew(); err != nil {
			return err
		}
		c, err := Dial()
		if err != nil {
			return err
		}
		defer c.Close()
		do := func(fill func(b *Batch)) func() error {
			return func() error {
				var b Batch
				fill(&b)
				return c.Do(ctx, &b)
			}
		}
		const bridge, vxlan, veth, peer, lo = 10, 11, 12, 13, 1
		try(FeatureBridge, "connects a job's namespaces", do(func(b *Batch) {
			b.AddBridge(LinkConfig{Name: "br", Index: bridge, Group: 1})
		}))
		try(FeatureVeth, "connects a namespace to the bridge", do(func(b *Batch) {
			b.AddVeth(LinkConfig{Name: "va", Index: veth, Group: 1}, LinkConfig{Name: "vb", Index: peer})
		}))
		try(FeatureVXLAN, "connects nodes", do(func(b *Batch) {
			b.AddVXLAN(LinkConfig{Name: "vx", Index: vxlan, Group: 1}, VXLAN{VNI: 1, Local: netip.MustParseAddr("127.0.0.1"), Port: 4789})
		}))
		try(FeatureAnyIP, "one route for all IPv4 endpoints", do(func(b *Batch) {
			b.SetLink(lo, LinkConfig{Up: true})
			b.AddRoute(Route{To: netip.MustParsePrefix("192.0.2.0/24"), Link: lo, Local: true})
		}))
		try(FeatureAnyIP6, "one route for all IPv6 endpoints", func() error {
			if err := SetSysctl("ipv6/ip_nonlocal_bind", "1"); err != nil {
				return err
			}
			return do(func(b *Batch) {
				b.AddRoute(Route{To: netip.MustParsePrefix("2001:db8::/64"), Link: lo, Local: true})
			})()
		})
		try(FeatureGroups, "remove a job's links at once", func() error {
			if err := do(func(b *Batch) { b.DeleteGroup(1) })(); err != nil {
				return err
			}
			if _, err := c.Link("va"); !errors.Is(err, ErrNotFound) {
				return fmt.Errorf("a link outlived its group: %w", errors.Join(err, ErrUnsupported))
			}
			return nil
		})
		return nil
	})
	if err != nil {
		return []Feature{{Name: FeatureNamespaces, Detail: err.Error()}}
	}
	return append(features, neighbours())
}

// neighbours says how large the kernel's table is, which all namespaces share.
func neighbours() Feature {
	f := Feature{Name: FeatureNeighbours}
	text, err := os.ReadFile("/proc/sys/net/ipv4/neigh/default/gc_thresh3")
	switch {
	case errors.Is(err, os.ErrNotExist):
		f.OK, f.Detail = true, "its limit is set outside this namespace"
	case err != nil:
		f.Detail = err.Error()
	default:
		f.OK, f.Detail = true, strings.TrimSpace(string(text))+" entries: one for each node of each job"
	}
	return f
}
