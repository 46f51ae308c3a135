//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/volley-run/volley/particle"
	"github.com/volley-run/volley/particle/bench"
	"github.com/volley-run/volley/particle/control/kvstore"
	"github.com/volley-run/volley/sophon/bus/natsserver"
)

type benchParticleOptions struct {
	sizes     []int
	designs   []string
	ipv6      string
	rounds    int
	processes []int
	pairs     []int
	duration  time.Duration
	nodes     []int
	out       string
	json      bool
}

// maxBenchEndpoints is how many endpoints a node's prefix has room for.
const maxBenchEndpoints = 16_000

func newBenchParticleCommand() *cobra.Command {
	var o benchParticleOptions
	var designs []string
	for _, d := range particle.Designs() {
		designs = append(designs, string(d))
	}
	cmd := &cobra.Command{
		Use:   "particle",
		Short: "Measure how soon a burst of endpoints is on an overlay",
		Long: `Measure, on this machine alone, what chapter 3 of the thesis measured on a
cluster. Nodes are network namespaces on one bridge; designs take turns within a
round, and the figures are medians over the rounds.

  --n          connecting that many endpoints on one node, and removing them, by
               each design (figure 3.2, tables 3.2 and 3.3); "settled" is until
               the kernel has finished as well
  --processes  starting that many processes, each in namespaces and a control
               group of its own, until each has spoken with a server on another
               node from its own address (needs bash and cgroup eBPF; while
               baseline and direct run, the kernel's limit of neighbours,
               net.ipv4.neigh.default.gc_thresh3, is raised)
  --pairs      TCP between that many endpoints of two nodes, with and without the
               address checks and with a namespace for each endpoint
  --nodes      as many nodes of 100 endpoints each, which hear of each other over
               NATS, until each has spoken with the next (table 3.1)

A list that is just 0 leaves that part out. A design that cannot have so many
endpoints is left out there: a Linux bridge has 1,023 ports. The container whose
start is added to the times in one column runs /bin/true in runc.

The tables go to standard output; JSON lines (one a measurement) and plots
(SVG, PNG) into --out. With the defaults it takes about twenty minutes, most of
them for 1,000 endpoints of the designs baseline and shared. It needs root.

Exit statuses: 0 done, 1 failed, 2 wrong usage.`,
		Example: `  sudo volley bench particle
  sudo volley bench particle --n 100 --ipv6 off --processes 0 --pairs 0 --nodes 0
  sudo volley bench particle --n 100,1000,10000 --designs consolidated,anyip`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return benchParticle(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.IntSliceVar(&o.sizes, "n", []int{100, 1000, 10_000}, "numbers of endpoints")
	f.StringSliceVar(&o.designs, "designs", designs, "which designs to measure with --n")
	f.StringVar(&o.ipv6, "ipv6", "both", "addresses of --n: off (IPv4 only), on (with IPv6) or both, in turn")
	f.IntVar(&o.rounds, "rounds", 3, "how often each is measured")
	f.IntSliceVar(&o.processes, "processes", []int{100, 1000}, "numbers of processes")
	f.IntSliceVar(&o.pairs, "pairs", []int{1, 10, 100}, "numbers of pairs of endpoints that send")
	f.DurationVar(&o.duration, "duration", time.Second, "how long each pair sends, and how long one is asked for a byte")
	f.IntSliceVar(&o.nodes, "nodes", []int{1, 4, 16}, "numbers of nodes")
	f.StringVar(&o.out, "out", "bench-particle", "directory for JSON lines and plots")
	f.BoolVar(&o.json, "json", false, "print the summary as JSON instead of tables")
	return cmd
}

func (o *benchParticleOptions) check() error {
	for _, name := range o.designs {
		if !slices.Contains(particle.Designs(), particle.Design(name)) {
			return usagef("--designs: there is no design %q; there are %v", name, particle.Designs())
		}
	}
	for _, l := range []struct {
		flag  string
		list  *[]int
		limit int
	}{
		{"--n", &o.sizes, maxBenchEndpoints},
		{"--processes", &o.processes, 10_000},
		{"--pairs", &o.pairs, 1000},
		{"--nodes", &o.nodes, bench.MaxNodes},
	} {
		if len(*l.list) == 1 && (*l.list)[0] == 0 {
			*l.list = nil
		}
		for _, n := range *l.list {
			if n < 1 || n > l.limit {
				return usagef("%s %d: must be 1 to %d, or just 0 to leave it out", l.flag, n, l.limit)
			}
		}
	}
	switch {
	case len(o.designs) == 0:
		return usagef("--designs must name at least one")
	case !slices.Contains([]string{"off", "on", "both"}, o.ipv6):
		return usagef("--ipv6 %s: must be off, on or both", o.ipv6)
	case o.rounds < 1 || o.rounds > 100:
		return usagef("--rounds %d: must be 1 to 100", o.rounds)
	case o.duration < 10*time.Millisecond || o.duration > time.Minute:
		return usagef("--duration %s: must be 10ms to 1m", o.duration)
	}
	return nil
}

// particleRuns are all measurements. A line of runs.jsonl is one of them.
type particleRuns struct {
	setups     []setupRun
	processes  []processRun
	traffic    []trafficRun
	nodes      []nodesRun
	containers []float64 // ms
}

// setupRun is one network, made and removed. Times are in milliseconds.
type setupRun struct {
	Kind      string             `json:"kind"` // "setup"
	Round     int                `json:"round"`
	Design    particle.Design    `json:"design"`
	Endpoints int                `json:"endpoints"`
	IPv6      bool               `json:"ipv6"`
	Apply     float64            `json:"apply_ms"`
	Close     float64            `json:"close_ms"`
	Settled   float64            `json:"settled_ms"`
	Steps     map[string]float64 `json:"steps_ms"`
}

// processRun is one burst of processes.
type processRun struct {
	Kind    string          `json:"kind"` // "processes"
	Round   int             `json:"round"`
	Design  particle.Design `json:"design,omitempty"`
	Count   int             `json:"processes"`
	Network float64         `json:"network_ms"`
	Groups  float64         `json:"discipline_ms"`
	Total   float64         `json:"total_ms"`
}

// trafficRun is TCP over one network.
type trafficRun struct {
	Kind       string  `json:"kind"` // "traffic"
	Round      int     `json:"round"`
	Way        string  `json:"way"`
	Pairs      int     `json:"pairs"`
	PerSecond  float64 `json:"bytes_per_second"`
	P50        float64 `json:"round_trip_p50_us"`
	P99        float64 `json:"round_trip_p99_us"`
	Discipline string  `json:"discipline,omitempty"`
}

// nodesRun is one job on several nodes.
type nodesRun struct {
	Kind      string          `json:"kind"` // "nodes"
	Round     int             `json:"round"`
	Design    particle.Design `json:"design"`
	Nodes     int             `json:"nodes"`
	Endpoints int             `json:"endpoints_per_node"`
	Applied   float64         `json:"applied_ms"`
	Known     float64         `json:"peers_known_ms"`
	Connected float64         `json:"connected_ms"`
}

func ms(d time.Duration) float64 { return d.Seconds() * 1e3 }

func benchParticle(ctx context.Context, o benchParticleOptions, stdout, stderr io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("making networks needs root: run it with sudo")
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return fmt.Errorf("make output directory: %w", err)
	}
	var runs particleRuns
	for _, part := range []func(context.Context, benchParticleOptions, io.Writer) error{
		runs.measureSetups, runs.measureProcesses, runs.measureTraffic, runs.measureNodes,
	} {
		if err := part(ctx, o, stderr); err != nil {
			return err
		}
	}
	s := summariseParticle(o, &runs)
	s.Machine = machine(ctx)
	if err := writeRunsAndSummary(o.out, runs.lines(), s); err != nil {
		return err
	}
	if err := s.plot(o.out); err != nil {
		return err
	}
	if o.json {
		return writeJSON(stdout, s)
	}
	return s.print(stdout)
}

func (r *particleRuns) lines() []any {
	var all []any
	for _, v := range r.setups {
		all = append(all, v)
	}
	for _, v := range r.processes {
		all = append(all, v)
	}
	for _, v := range r.traffic {
		all = append(all, v)
	}
	for _, v := range r.nodes {
		all = append(all, v)
	}
	return all
}

// onCluster calls f with nodes that are there for as long.
func onCluster(ctx context.Context, nodes int, f func(c *bench.Cluster) error) error {
	c, err := bench.OpenCluster(ctx, nodes)
	if err != nil {
		return err
	}
	return errors.Join(f(c), c.Close())
}

func (r *particleRuns) measureSetups(ctx context.Context, o benchParticleOptions, stderr io.Writer) error {
	if len(o.sizes) == 0 {
		return nil
	}
	six := []bool{false, true}
	if o.ipv6 != "both" {
		six = []bool{o.ipv6 == "on"}
	}
	return onCluster(ctx, 2, func(c *bench.Cluster) error {
		for round := range o.rounds {
			if t, err := containerStart(ctx, o.out); err != nil {
				fmt.Fprintf(stderr, "no container is started: %v\n", err)
			} else {
				r.containers = append(r.containers, ms(t))
			}
			for _, size := range o.sizes {
				for _, ipv6 := range six {
					for _, d := range o.designs {
						fmt.Fprintf(stderr, "round %d of %d: %s, %s, IPv6 %t\n", round+1, o.rounds, plural(size, "endpoint"), d, ipv6)
						s, err := c.Setup(ctx, bench.Network{Design: particle.Design(d), Endpoints: size, IPv6: ipv6})
						if errors.Is(err, particle.ErrBridgeFull) {
							continue
						}
						if err != nil {
							return err
						}
						run := setupRun{
							Kind: "setup", Round: round, Design: s.Design, Endpoints: size, IPv6: ipv6,
							Apply: ms(s.Apply), Close: ms(s.Close), Settled: ms(s.Settled), Steps: map[string]float64{},
						}
						for _, step := range s.Steps {
							run.Steps[step.Name] += ms(step.Duration)
						}
						r.setups = append(r.setups, run)
					}
				}
			}
		}
		return nil
	})
}

// burstDesigns are the designs that start processes; the empty one has none.
func burstDesigns() []particle.Design {
	return []particle.Design{"", particle.Baseline, particle.Direct, particle.AnyIP}
}

func (r *particleRuns) measureProcesses(ctx context.Context, o benchParticleOptions, stderr io.Writer) error {
	if len(o.processes) == 0 {
		return nil
	}
	return onCluster(ctx, 2, func(c *bench.Cluster) error {
		for round := range o.rounds {
			for _, count := range o.processes {
				for _, d := range burstDesigns() {
					fmt.Fprintf(stderr, "round %d of %d: %d processes, %s\n", round+1, o.rounds, count, wayOf(d))
					p, err := c.Processes(ctx, d, count)
					if errors.Is(err, particle.ErrBridgeFull) {
						continue
					}
					if err != nil {
						return err
					}
					r.processes = append(r.processes, processRun{
						Kind: "processes", Round: round, Design: d, Count: count,
						Network: ms(p.Network), Groups: ms(p.Groups), Total: ms(p.Total),
					})
				}
			}
		}
		return nil
	})
}

func wayOf(d particle.Design) string {
	if d == "" {
		return "no network"
	}
	return string(d)
}

// trafficWays are the networks between which data is sent, the one of
// comparison first.
func trafficWays() []struct {
	name string
	bench.Network
} {
	return []struct {
		name string
		bench.Network
	}{
		{"direct", bench.Network{Design: particle.Direct}},
		{"anyip, no checks", bench.Network{Design: particle.AnyIP, Discipline: particle.DisciplineNone}},
		{"anyip, checked", bench.Network{Design: particle.AnyIP, Discipline: particle.DisciplineAuto}},
	}
}

// trafficRounds is how many rounds of traffic there are in each of --rounds:
// the differences are small and the machine's noise is not.
const trafficRounds = 3

func (r *particleRuns) measureTraffic(ctx context.Context, o benchParticleOptions, stderr io.Writer) error {
	if len(o.pairs) == 0 {
		return nil
	}
	return onCluster(ctx, 2, func(c *bench.Cluster) error {
		// The first of all finds caches cold.
		if _, err := c.Traffic(ctx, trafficWays()[0].Network, 1, o.duration); err != nil {
			return err
		}
		rounds := trafficRounds * o.rounds
		for round := range rounds {
			for _, pairs := range o.pairs {
				ways := trafficWays()
				for i := range ways {
					way := ways[(i+round)%len(ways)] // nobody is always first
					fmt.Fprintf(stderr, "round %d of %d: %s, %s\n", round+1, rounds, plural(pairs, "sending pair"), way.name)
					t, err := c.Traffic(ctx, way.Network, pairs, o.duration)
					if err != nil {
						return err
					}
					r.traffic = append(r.traffic, trafficRun{
						Kind: "traffic", Round: round, Way: way.name, Pairs: pairs, Discipline: string(way.Discipline),
						PerSecond: t.BytesPerSecond, P50: t.P50.Seconds() * 1e6, P99: t.P99.Seconds() * 1e6,
					})
				}
			}
		}
		return nil
	})
}

// endpointsPerNode is the thesis's number in table 3.1.
const endpointsPerNode = 100

// measureNodes measures on nodes that know nothing, so new ones each time.
func (r *particleRuns) measureNodes(ctx context.Context, o benchParticleOptions, stderr io.Writer) (err error) {
	if len(o.nodes) == 0 {
		return nil
	}
	dir, err := os.MkdirTemp(o.out, "tmp-")
	if err != nil {
		return fmt.Errorf("make temporary directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	server, err := natsserver.Start(natsserver.Config{StoreDir: dir, InProcessOnly: true})
	if err != nil {
		return err
	}
	defer server.Shutdown()
	for round := range o.rounds {
		for _, nodes := range o.nodes {
			for _, d := range []particle.Design{particle.Baseline, particle.AnyIP} {
				fmt.Fprintf(stderr, "round %d of %d: %s, %s\n", round+1, o.rounds, plural(nodes, "node"), d)
				if err := onCluster(ctx, nodes, func(c *bench.Cluster) error {
					m, err := c.Nodes(ctx, bench.Network{Design: d, Endpoints: endpointsPerNode}, func(int) (particle.ControlPlane, error) {
						return openInProcess(ctx, server)
					})
					if err == nil {
						r.nodes = append(r.nodes, nodesRun{
							Kind: "nodes", Round: round, Design: d, Nodes: nodes, Endpoints: m.Endpoints,
							Applied: ms(m.Applied), Known: ms(m.Known), Connected: ms(m.Connected),
						})
					}
					return err
				}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// inProcessPlane is a control plane with a connection of its own.
type inProcessPlane struct {
	*kvstore.Store
	conn *nats.Conn
}

func (p inProcessPlane) Close() error {
	defer p.conn.Close()
	return p.Store.Close()
}

func openInProcess(ctx context.Context, server *natsserver.Server) (particle.ControlPlane, error) {
	conn, err := nats.Connect("", nats.InProcessServer(server))
	if err != nil {
		return nil, fmt.Errorf("connect to the NATS server of this process: %w", err)
	}
	store, err := kvstore.Open(ctx, kvstore.Config{Conn: conn})
	if err != nil {
		conn.Close()
		return nil, err
	}
	return inProcessPlane{store, conn}, nil
}
