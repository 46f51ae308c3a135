//go:build linux

// volley-cni is Particle as a plugin of the Container Network Interface: a
// container runtime starts it for each container, with a configuration on
// standard input. docs/cni.md describes both.
package main

import (
	"context"
	"time"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/volley-run/volley/particle/cni"
)

// timeout is how long a call may wait for others. Runtimes wait longer.
const timeout = time.Minute

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	with := func(f func(context.Context, *skel.CmdArgs) error) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) error { return f(ctx, args) }
	}
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add: func(args *skel.CmdArgs) error {
			result, err := cni.Add(ctx, args)
			if err != nil {
				return err
			}
			return result.Print()
		},
		Del:    with(cni.Del),
		Check:  with(cni.Check),
		GC:     with(cni.GC),
		Status: with(cni.Status),
	}, cni.Versions(), cni.Type+": addresses for containers on Volley's networks. A container runtime starts it: see docs/cni.md.")
}
