//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/particle"
	"github.com/volley-run/volley/particle/launch"
	"github.com/volley-run/volley/particle/preload"
	"github.com/volley-run/volley/particle/seccomp"
)

func newNetExecCommand() *cobra.Command {
	var o netNode
	cmd := &cobra.Command{
		Use:   "exec JOB ENDPOINT -- COMMAND [ARG...]",
		Short: "Run a program as one endpoint of a network",
		Long: `Run a program as one endpoint, which is a number from 0 or one of its addresses.
It finds its own address in VOLLEY_ADDRESS (and VOLLEY_ADDRESS6), and what it
binds to or connects from is that address.

This is for programs that you trust: they keep their user and see the host's
files. They do lose the rights to change or sniff the network. Volley's
containers are the sandbox for others (volley deploy --network net:JOB).

Exit statuses: that of COMMAND; 126 if it cannot be started, 127 if it is not
found; 2 wrong usage, 4 there is no such network or endpoint.`,
		Example: `  volley net exec job1 0 -- python3 -m http.server 80
  volley net exec job1 10.77.0.3 -- curl -s http://10.77.0.2/`,
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 2 || len(args) < 3 {
				return errors.New("say JOB ENDPOINT -- COMMAND")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var opts launch.Options
			err := o.use(func(node *particle.Node) error {
				nw, err := node.Open(args[0])
				if err != nil {
					return err
				}
				ep, err := findEndpoint(nw, args[1])
				if err != nil {
					return err
				}
				if ep.Namespace == "" {
					return usagef("the endpoints of %s are attached to namespaces of others (design %s): enter one of those, as by nsenter --net", args[0], particle.Attached)
				}
				if err := nw.Enroll(cmd.Context(), ep); err != nil {
					return err
				}
				opts = launch.Options{
					Network: ep.Network, Endpoint: ep.Name, Namespace: ep.Namespace, Cgroup: ep.Cgroup, Address: ep.Address, Address6: ep.Address6,
				}
				opts.Discipline, err = programDiscipline(nw.Spec(), ep)
				return err
			})
			if err != nil {
				return err
			}
			return runAsEndpoint(cmd, opts, args[2:])
		},
	}
	o.register(cmd)
	return cmd
}

// findEndpoint returns the endpoint that text names: an index or an address.
func findEndpoint(nw *particle.Network, text string) (particle.Endpoint, error) {
	if i, err := strconv.Atoi(text); err == nil {
		return nw.Endpoint(i)
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return particle.Endpoint{}, usagef("endpoint %q: is neither a number nor an address", text)
	}
	i, ok := nw.Spec().IndexOf(a)
	if !ok {
		return particle.Endpoint{}, fmt.Errorf("endpoint %s of %s: %w", a, nw.Spec().Name, particle.ErrNotFound)
	}
	return nw.Endpoint(i)
}

// programDiscipline returns what is to hold a program to the endpoint's address.
func programDiscipline(s particle.Spec, ep particle.Endpoint) (launch.Discipline, error) {
	switch {
	case !s.Design.SharesNamespace():
		return launch.None, nil // it has the namespace for itself
	case ep.Cgroup != "":
		return launch.BPF, nil
	case s.Discipline != particle.DisciplineAuto:
		return launch.Discipline(s.Discipline), nil
	}
	if seccomp.Probe() == nil {
		return launch.Seccomp, nil
	}
	if _, err := preload.Find(); err == nil {
		return launch.Preload, nil
	}
	return "", fmt.Errorf("nothing here can hold a program to its address (volley net doctor says why): declare the network with --discipline %s to do without", particle.DisciplineNone)
}

func runAsEndpoint(cmd *cobra.Command, opts launch.Options, argv []string) error {
	if opts.Discipline != launch.Seccomp {
		return startError(launch.Exec(opts, argv))
	}
	// The supervisor has to stay. Signals are the program's business, so they
	// must not end the wait.
	status, err := launch.Run(context.WithoutCancel(cmd.Context()), opts, argv, launch.Stdio{In: cmd.InOrStdin(), Out: cmd.OutOrStdout(), Err: cmd.ErrOrStderr()})
	if err != nil {
		return startError(err)
	}
	if status != exitOK {
		return &programEnded{status}
	}
	return nil
}

func startError(err error) error { return withStatus(launch.Status(err), err) }
