//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/particle"
)

func newNetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "net",
		Short: "Give the functions of a job their own addresses on an overlay network",
		Long: `Declare the networks of jobs on this node (Particle). All endpoints of a job are
made at once, however many they are, and reach those on other nodes over VXLAN.
Jobs do not reach each other, nor the host.

These commands need root. What they make stays until "volley net down" or a
restart of the machine; after a crash, "volley net gc" removes what is half made.`,
		Example: `  volley net up --name job1 --prefix 10.77.0.0/16 --endpoints 1000
  volley net exec job1 0 -- python3 -m http.server 80 &
  volley net exec job1 1 -- curl http://10.77.0.2/
  volley net down job1 --force`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newNetUpCommand(), newNetLsCommand(), newNetShowCommand(), newNetDownCommand(), newNetGCCommand(),
		newNetExecCommand(), newNetAgentCommand(), newNetDoctorCommand())
	return cmd
}

// netNode is which node a command is about.
type netNode struct{ name, state string }

func (o *netNode) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.name, "node", "", "this node's name, where one machine has several")
	f.StringVar(&o.state, "state", "", `directory that says what was made (default "`+particle.DefaultStateDir+`")`)
}

// use opens the node, calls f, and closes it again.
func (o *netNode) use(f func(*particle.Node) error) (err error) {
	node, err := particle.OpenNode(particle.NodeConfig{Name: o.name, StateDir: o.state})
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: run as root", err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	return netStatus(f(node))
}

// netStatus gives the errors of networks their exit statuses.
func netStatus(err error) error {
	var spec *particle.SpecError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &spec):
		return usagef("%w", err)
	case errors.Is(err, particle.ErrNotFound):
		return withStatus(exitInput, fmt.Errorf("%w: volley net ls lists what there is", err))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: run as root", err)
	}
	return err
}

type netUpOptions struct {
	netNode
	spec     particle.Spec
	prefixes struct{ prefix, node, prefix6, node6 string }
	underlay string
	peers    []string
	claim    claimOptions
	json     bool
}

func newNetUpCommand() *cobra.Command {
	var o netUpOptions
	cmd := &cobra.Command{
		Use:   "up [FILE]",
		Short: "Make a job's network on this node, or bring it up to date",
		Long: `Declare a job's network on this node and make it so. FILE is a JSON document
(docs/formats/network.md; - is standard input); flags come on top of it. With
other nodes, each has its own part of the prefix (--node-prefix), and knows them
by --peer or by a control plane: see "volley net agent".

The same command again changes nothing; with other peers or more endpoints it
changes just that. What cannot be changed in place is refused.

Designs: ` + designList() + `;
attached is for namespaces of container runtimes (volley-cni).

Exit statuses: 0 it is up, 1 the kernel refuses, 2 a wrong flag or field (it is
named), 4 FILE cannot be read.`,
		Example: `  volley net up --name job1 --prefix 10.77.0.0/16 --endpoints 1000
  volley net up --name job1 --prefix 10.77.0.0/16 --node-prefix 10.77.1.0/24 --endpoints 200 \
      --underlay 192.0.2.1 --peer b=192.0.2.2,10.77.2.0/24
  volley net up job1.json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := o.read(cmd, args)
			if err != nil {
				return err
			}
			return o.use(func(node *particle.Node) error { return o.run(cmd.Context(), node, spec, cmd.OutOrStdout()) })
		},
	}
	o.register(cmd)
	f := cmd.Flags()
	f.StringVar(&o.spec.Name, "name", "", "the job's name")
	f.StringVar(&o.spec.Tenant, "tenant", particle.DefaultTenant, "whose job it is")
	f.StringVar((*string)(&o.spec.Isolation), "isolation", string(particle.IsolateJob), "what has a network of its own: each job, or each tenant")
	f.Uint32Var(&o.spec.VNI, "vni", 0, "VXLAN network identifier (default: follows from tenant and name)")
	f.StringVar(&o.prefixes.prefix, "prefix", "", "the job's IPv4 prefix on all nodes, such as 10.77.0.0/16")
	f.StringVar(&o.prefixes.node, "node-prefix", "", "this node's part of it (default: all)")
	f.StringVar(&o.prefixes.prefix6, "prefix6", "", "the job's IPv6 prefix, such as fd77::/64")
	f.StringVar(&o.prefixes.node6, "node-prefix6", "", "this node's part of it (default: all)")
	f.IntVar(&o.spec.Endpoints, "endpoints", 0, "how many endpoints this node has")
	f.StringVar((*string)(&o.spec.Design), "design", string(particle.AnyIP), "how they are connected")
	f.StringVar((*string)(&o.spec.Discipline), "discipline", string(particle.DisciplineAuto), "what holds programs to their address: auto, bpf, seccomp, preload or none")
	f.StringVar(&o.underlay, "underlay", "", "this node's address, and UDP port if not 4789, for other nodes")
	f.IntVar(&o.spec.Underlay.MTU, "mtu", 0, "largest packet of the underlay in bytes (default: its interface's)")
	f.StringArrayVar(&o.peers, "peer", nil, "another node: NAME=ADDRESS,PREFIX[,PREFIX6]; may be repeated")
	f.BoolVar(&o.json, "json", false, "print JSON")
	o.claim.register(cmd)
	return cmd
}

func designList() string {
	var names []string
	for _, d := range particle.Designs() {
		names = append(names, string(d))
	}
	return strings.Join(names, ", ")
}

// read puts together file and flags.
func (o *netUpOptions) read(cmd *cobra.Command, args []string) (particle.Spec, error) {
	var spec particle.Spec
	if len(args) == 1 {
		var err error
		if spec, err = readNetSpec(args[0], cmd.InOrStdin()); err != nil {
			return spec, withStatus(exitInput, fmt.Errorf("read %s: %w", args[0], err))
		}
	}
	set := cmd.Flags().Changed
	for _, field := range []struct {
		flag string
		copy func()
	}{
		{"name", func() { spec.Name = o.spec.Name }},
		{"tenant", func() { spec.Tenant = o.spec.Tenant }},
		{"isolation", func() { spec.Isolation = o.spec.Isolation }},
		{"vni", func() { spec.VNI = o.spec.VNI }},
		{"endpoints", func() { spec.Endpoints = o.spec.Endpoints }},
		{"design", func() { spec.Design = o.spec.Design }},
		{"discipline", func() { spec.Discipline = o.spec.Discipline }},
		{"mtu", func() { spec.Underlay.MTU = o.spec.Underlay.MTU }},
	} {
		if set(field.flag) {
			field.copy()
		}
	}
	for _, p := range []struct {
		flag, text string
		to         *netip.Prefix
	}{
		{"prefix", o.prefixes.prefix, &spec.Prefix}, {"node-prefix", o.prefixes.node, &spec.NodePrefix},
		{"prefix6", o.prefixes.prefix6, &spec.Prefix6}, {"node-prefix6", o.prefixes.node6, &spec.NodePrefix6},
	} {
		if p.text == "" {
			continue
		}
		var err error
		if *p.to, err = netip.ParsePrefix(p.text); err != nil {
			return spec, usagef("--%s %q: is no prefix such as 10.77.0.0/16", p.flag, p.text)
		}
	}
	if o.underlay != "" {
		if a, err := netip.ParseAddr(o.underlay); err == nil {
			spec.Underlay.Address = a
		} else if a, err := netip.ParseAddrPort(o.underlay); err == nil {
			spec.Underlay.Address, spec.Underlay.Port = a.Addr(), a.Port()
		} else {
			return spec, usagef("--underlay %q: is neither an IP address nor ADDRESS:PORT", o.underlay)
		}
	}
	for _, text := range o.peers {
		peer, err := parsePeer(text)
		if err != nil {
			return spec, usagef("--peer %q: %w", text, err)
		}
		spec.Peers = append(spec.Peers, peer)
	}
	return spec, nil
}

func readNetSpec(name string, stdin io.Reader) (particle.Spec, error) {
	var text []byte
	var err error
	if name == "-" {
		text, err = io.ReadAll(io.LimitReader(stdin, maxNetSpec+1))
	} else if text, err = os.ReadFile(name); err != nil {
		var path *fs.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
	}
	if err != nil {
		return particle.Spec{}, err
	}
	if len(text) > maxNetSpec {
		return particle.Spec{}, fmt.Errorf("it is larger than %d MB", maxNetSpec>>20)
	}
	return particle.ParseSpec(text)
}

// maxNetSpec bounds a declaration: tens of thousands of peers.
const maxNetSpec = 8 << 20

// parsePeer reads NAME=ADDRESS,PREFIX[,PREFIX6].
func parsePeer(text string) (particle.Peer, error) {
	name, rest, ok := strings.Cut(text, "=")
	parts := strings.Split(rest, ",")
	if !ok || name == "" || len(parts) < 2 {
		return particle.Peer{}, errors.New("must be NAME=ADDRESS,PREFIX as in b=192.0.2.2,10.77.2.0/24")
	}
	p := particle.Peer{Node: name}
	var err error
	if p.Underlay, err = netip.ParseAddr(parts[0]); err != nil {
		return p, fmt.Errorf("%q is no IP address", parts[0])
	}
	for _, part := range parts[1:] {
		prefix, err := netip.ParsePrefix(part)
		if err != nil {
			return p, fmt.Errorf("%q is no prefix", part)
		}
		if prefix.Addr().Is4() {
			p.Prefix = prefix
		} else {
			p.Prefix6 = prefix
		}
	}
	return p, nil
}

func (o *netUpOptions) run(ctx context.Context, node *particle.Node, spec particle.Spec, stdout io.Writer) error {
	spec, err := o.claim.claim(ctx, spec, o.name)
	if err != nil {
		return err
	}
	started := time.Now()
	nw, err := node.Declare(spec)
	if err != nil {
		return err
	}
	if err := nw.Apply(ctx); err != nil {
		return err
	}
	took := time.Since(started)
	if o.json {
		return writeJSON(stdout, netUpResult{Spec: nw.Spec(), Namespace: nw.Namespace(), Milliseconds: float64(took.Microseconds()) / 1000, Steps: netSteps(nw.Steps())})
	}
	s := nw.Spec()
	fmt.Fprintf(stdout, "%s is up: %s, VNI %d, %s, in %.1f ms\n", s.Name, plural(s.Endpoints, "endpoint"), s.VNI, s.Design, float64(took.Microseconds())/1000)
	if s.Endpoints > 0 {
		first, err := nw.Endpoint(0)
		if err != nil {
			return err
		}
		last, err := nw.Endpoint(s.Endpoints - 1)
		if err != nil {
			return err
		}
		fmt.Fprintf(stdout, "  addresses  %s to %s\n", addresses(first), addresses(last))
	}
	if path := nw.Namespace(); path != "" {
		fmt.Fprintf(stdout, "  namespace  %s\n", path)
	}
	return nil
}

// addresses is an endpoint's addresses for people.
func addresses(ep particle.Endpoint) string {
	switch {
	case !ep.Address6.IsValid():
		return ep.Address.String()
	case !ep.Address.IsValid():
		return ep.Address6.String()
	}
	return ep.Address.String() + " and " + ep.Address6.String()
}

type netUpResult struct {
	Spec         particle.Spec      `json:"spec"`
	Namespace    string             `json:"namespace,omitempty"`
	Milliseconds float64            `json:"milliseconds"`
	Steps        map[string]float64 `json:"steps_ms"`
}

func netSteps(steps []particle.Step) map[string]float64 {
	ms := map[string]float64{}
	for _, s := range steps {
		ms[s.Name] += float64(s.Duration.Microseconds()) / 1000
	}
	return ms
}

func newNetLsCommand() *cobra.Command {
	var o netNode
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the networks of this node",
		Long: `List the networks that were declared on this node, with what is in use.

Exit statuses: 0 done, 1 failed, 2 wrong usage.`,
		Example: "  volley net ls\n  volley net ls --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.use(func(node *particle.Node) error {
				all, err := node.List(cmd.Context())
				if err != nil {
					return err
				}
				if asJSON {
					if all == nil {
						all = []particle.Status{}
					}
					return writeJSON(cmd.OutOrStdout(), all)
				}
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "JOB\tTENANT\tVNI\tDESIGN\tENDPOINTS\tPREFIX\tPEERS\tSTATE")
				for _, s := range all {
					fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%d\t%s\t%d\t%s\n", s.Spec.Name, s.Spec.Tenant, s.Spec.VNI, s.Spec.Design, s.Spec.Endpoints,
						prefixes(s.Spec), len(s.Peers), s.State)
				}
				return t.Flush()
			})
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func prefixes(s particle.Spec) string {
	var texts []string
	for _, p := range []netip.Prefix{s.NodePrefix, s.NodePrefix6} {
		if p.IsValid() {
			texts = append(texts, p.String())
		}
	}
	return strings.Join(texts, " ")
}

func newNetShowCommand() *cobra.Command {
	var o netNode
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show JOB",
		Short: "Show one network: what it is made of, its peers and who uses it",
		Long: `Show one network of this node: its declaration, its peers, what holds programs to
their address, and which endpoints are in use.

Exit statuses: 0 done, 1 failed, 2 wrong usage, 4 there is no such network.`,
		Example: "  volley net show job1\n  volley net show job1 --json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.use(func(node *particle.Node) error {
				nw, err := node.Open(args[0])
				if err != nil {
					return err
				}
				status, err := nw.Status(cmd.Context())
				if err != nil {
					return err
				}
				if asJSON {
					return writeJSON(cmd.OutOrStdout(), status)
				}
				return printNetwork(cmd.OutOrStdout(), status)
			})
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printNetwork(w io.Writer, s particle.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	line("job", "%s of tenant %s (isolation: %s)", s.Spec.Name, s.Spec.Tenant, s.Spec.Isolation)
	line("state", "%s", s.State)
	line("vni", "%d", s.Spec.VNI)
	line("design", "%s", s.Spec.Design)
	line("discipline", "%s", s.Spec.Discipline)
	line("prefix", "%s", prefixes(s.Spec))
	line("endpoints", "%d", s.Spec.Endpoints)
	if s.Namespace != "" {
		line("namespace", "%s", s.Namespace)
	}
	if s.Spec.Underlay.Address.IsValid() {
		line("underlay", "%s", netip.AddrPortFrom(s.Spec.Underlay.Address, s.Spec.Underlay.Port))
	}
	for _, p := range s.Peers {
		part := prefixes(particle.Spec{NodePrefix: p.Prefix, NodePrefix6: p.Prefix6})
		line("peer", "%s at %s: %s", p.Node, p.Underlay, strings.TrimSpace(part+" "+hostList(p.Hosts)))
	}
	for owner, ep := range s.Owners {
		line("in use", "%s by %s", addresses(ep), owner)
	}
	return t.Flush()
}

func hostList(hosts []particle.Host) string {
	if len(hosts) == 0 {
		return ""
	}
	return plural(len(hosts), "host")
}

func newNetDownCommand() *cobra.Command {
	var o netNode
	var control netControl
	var all, force bool
	cmd := &cobra.Command{
		Use:   "down JOB...",
		Short: "Remove networks from this node",
		Long: `Remove networks and everything that they are made of. One that has programs
running is left alone, unless --force, which kills them. One that is not there
is no error. With --nats, the part of the prefix that the node claimed is given
back.

Exit statuses: 0 they are gone, 1 failed or in use, 2 wrong usage.`,
		Example: "  volley net down job1\n  volley net down --all --force",
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usagef("name the networks, or say --all")
			}
			return o.use(func(node *particle.Node) error {
				return netDown(cmd.Context(), node, args, all, force, func(s particle.Spec) error { return control.release(cmd.Context(), s, o.name) })
			})
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "remove all networks of the node")
	cmd.Flags().BoolVar(&force, "force", false, "kill what runs in them")
	control.register(cmd)
	return cmd
}

// netDown removes networks. release gives back what a removed one had claimed.
func netDown(ctx context.Context, node *particle.Node, names []string, all, force bool, release func(particle.Spec) error) error {
	if all {
		list, err := node.List(ctx)
		if err != nil {
			return err
		}
		for _, s := range list {
			names = append(names, s.Spec.Name)
		}
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, func() error {
			nw, err := node.Open(name)
			if errors.Is(err, particle.ErrNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			if !force {
				pids, err := nw.Processes(ctx)
				if err != nil {
					return err
				}
				if len(pids) > 0 {
					return fmt.Errorf("%s is in use by %s (first: process %d): end them, or say --force", name, processes(len(pids)), pids[0])
				}
			}
			if err := nw.Close(ctx); err != nil {
				return err
			}
			return release(nw.Spec())
		}())
	}
	return errors.Join(errs...)
}

func processes(n int) string {
	if n == 1 {
		return "1 process"
	}
	return strconv.Itoa(n) + " processes"
}

func newNetGCCommand() *cobra.Command {
	var o netNode
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove what crashed commands left half made",
		Long: `Remove networks whose making was interrupted, and namespaces, links, control
groups and programs of this node that belong to no network. Networks that are up
are left alone.

Exit statuses: 0 done, 1 failed, 2 wrong usage.`,
		Example: "  volley net gc",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.use(func(node *particle.Node) error {
				report, err := node.GC(cmd.Context())
				if asJSON {
					return errors.Join(err, writeJSON(cmd.OutOrStdout(), report))
				}
				for _, what := range report.Removed {
					fmt.Fprintf(cmd.OutOrStdout(), "removed %s\n", what)
				}
				if err == nil && len(report.Removed) == 0 {
					fmt.Fprintln(cmd.OutOrStdout(), "there was nothing to remove")
				}
				return err
			})
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
