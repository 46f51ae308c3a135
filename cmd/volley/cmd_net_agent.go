//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/volley-run/volley/particle"
	"github.com/volley-run/volley/particle/control/kvstore"
)

// netControl is which control plane a command uses.
type netControl struct {
	urls      []string
	tokenFile string
}

func (o *netControl) register(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&o.urls, "nats", nil, "NATS servers by which nodes hear of each other")
	cmd.Flags().StringVar(&o.tokenFile, "token-file", "", "file with the token that the NATS server asks for")
}

// open connects to the control plane. Its closing ends the connection.
func (o *netControl) open(ctx context.Context) (_ *kvstore.Store, closeAll func() error, err error) {
	options := []nats.Option{nats.Name("volley net"), nats.MaxReconnects(-1)}
	token, err := readToken(o.tokenFile)
	if err != nil {
		return nil, nil, err
	}
	if token != "" {
		options = append(options, nats.Token(token))
	}
	conn, err := nats.Connect(strings.Join(o.urls, ","), options...)
	if err != nil {
		return nil, nil, withStatus(exitPlatform, fmt.Errorf("connect to NATS at %s: %w", strings.Join(o.urls, ", "), err))
	}
	store, err := kvstore.Open(ctx, kvstore.Config{Conn: conn})
	if err != nil {
		conn.Close()
		return nil, nil, withStatus(exitPlatform, err)
	}
	return store, func() error {
		defer conn.Close()
		return store.Close()
	}, nil
}

func newNetAgentCommand() *cobra.Command {
	var o netNode
	var control agentControl
	var logs logOptions
	cmd := &cobra.Command{
		Use:   "agent {--nats URL | --control evpn --bgp-as N --bgp-router-id ADDRESS --bgp-neighbor ADDRESS}",
		Short: "Tell other nodes of this node's networks, and hear of theirs",
		Long: `Announce the networks that are declared on this node with an underlay, and give
them the peers that other nodes' agents announce, until Ctrl-C. Networks may
come and go meanwhile; they stay as they are when the agent ends.

Nodes hear of each other by a NATS server, or by BGP EVPN: then their neighbours
are a route reflector, which may be another agent (--bgp-clients), routers such
as FRR, or each other. Parts of a prefix are claimed by NATS only.

Exit statuses: 0 after Ctrl-C, 1 it cannot run, 2 wrong usage, 6 no NATS server
answers.`,
		Example: `  volley net agent --nats nats://192.0.2.1:4222 --token-file nats-token
  volley net agent --control evpn --bgp-as 64512 --bgp-router-id 192.0.2.1 \
      --bgp-neighbor 192.0.2.254`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := control.check(cmd); err != nil {
				return err
			}
			log, err := logs.open(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return o.use(func(node *particle.Node) (err error) {
				plane, by, closeAll, err := control.open(cmd.Context(), log)
				if err != nil {
					return err
				}
				defer func() { err = errors.Join(err, closeAll()) }()
				fmt.Fprintf(cmd.OutOrStdout(), "The networks of this node are announced by %s (Ctrl-C ends)\n", by)
				if err := node.Follow(cmd.Context(), plane, log); err != nil && cmd.Context().Err() == nil {
					return err
				}
				return nil
			})
		},
	}
	o.register(cmd)
	control.register(cmd)
	logs.register(cmd)
	return cmd
}

// claimOptions let a node get its part of a job's prefix from the control plane.
type claimOptions struct {
	netControl
	bits, bits6 int
}

func (o *claimOptions) register(cmd *cobra.Command) {
	o.netControl.register(cmd)
	cmd.Flags().IntVar(&o.bits, "claim", 0, "length of this node's part of --prefix, to be claimed by --nats")
	cmd.Flags().IntVar(&o.bits6, "claim6", 0, "length of this node's part of --prefix6, to be claimed by --nats")
}

// claim fills in the node's parts of the prefixes, if they are to be claimed.
func (o *claimOptions) claim(ctx context.Context, spec particle.Spec, node string) (_ particle.Spec, err error) {
	if o.bits == 0 && o.bits6 == 0 {
		return spec, nil
	}
	if len(o.urls) == 0 {
		return spec, usagef("--claim needs --nats, the server that knows who has which part; with EVPN nobody does, so give this node's with --node-prefix")
	}
	if !spec.Underlay.Address.IsValid() {
		return spec, usagef("--claim needs --underlay, this node's address for the others")
	}
	store, closeAll, err := o.open(ctx)
	if err != nil {
		return spec, err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	m := spec.WithDefaults().Member(node)
	for _, c := range []struct {
		bits        int
		whole, part *netip.Prefix
	}{{o.bits, &spec.Prefix, &spec.NodePrefix}, {o.bits6, &spec.Prefix6, &spec.NodePrefix6}} {
		if c.bits == 0 {
			continue
		}
		if *c.part, err = store.Claim(ctx, m, *c.whole, c.bits); err != nil {
			return spec, err
		}
	}
	return spec, nil
}

// release gives back what the node claimed of a network, if a control plane is
// named.
func (o *netControl) release(ctx context.Context, spec particle.Spec, node string) (err error) {
	if len(o.urls) == 0 {
		return nil
	}
	store, closeAll, err := o.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	return store.Release(ctx, spec.Member(node))
}
