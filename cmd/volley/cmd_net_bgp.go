//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/particle"
	"github.com/volley-run/volley/particle/control/evpn"
)

// The control planes that an agent can use.
const (
	controlNATS = "nats"
	controlEVPN = "evpn"
)

// agentControl is which control plane an agent uses, and how.
type agentControl struct {
	kind string
	nats netControl
	bgp  bgpOptions
}

func (o *agentControl) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.kind, "control", controlNATS, "by what nodes hear of each other: nats or evpn")
	o.nats.register(cmd)
	o.bgp.register(cmd)
}

// check refuses flags that do not belong together.
func (o *agentControl) check(cmd *cobra.Command) error {
	var foreign []string
	switch o.kind {
	case controlNATS:
		foreign = bgpFlags()
	case controlEVPN:
		foreign = []string{"nats", "token-file"}
	default:
		return usagef("--control %q is unknown: use %s or %s", o.kind, controlNATS, controlEVPN)
	}
	for _, name := range foreign {
		if cmd.Flags().Changed(name) {
			return usagef("--%s does not go with --control %s: leave out one of them", name, o.kind)
		}
	}
	if o.kind == controlNATS && len(o.nats.urls) == 0 {
		return usagef("--nats is missing: the NATS server by which the nodes hear of each other; or use --control %s", controlEVPN)
	}
	return nil
}

// open connects to the control plane, and says by what networks are announced.
func (o *agentControl) open(ctx context.Context, log *slog.Logger) (_ particle.ControlPlane, by string, closeAll func() error, err error) {
	if o.kind == controlNATS {
		store, closeAll, err := o.nats.open(ctx)
		return store, strings.Join(o.nats.urls, ", "), closeAll, err
	}
	cfg, err := o.bgp.config()
	if err != nil {
		return nil, "", nil, err
	}
	cfg.Log = log
	speaker, err := evpn.Open(ctx, cfg)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, "", nil, fmt.Errorf("--bgp-listen %s: %w; stop the other BGP speaker of this machine or give another port", o.bgp.listen, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, "", nil, fmt.Errorf("--bgp-listen %s: %w; give an address of this node", o.bgp.listen, err)
	case err != nil:
		return nil, "", nil, err
	}
	return speaker, fmt.Sprintf("BGP EVPN from AS %d", cfg.ASN), speaker.Close, nil
}

// bgpOptions are the BGP speaker of a node, as flags.
type bgpOptions struct {
	asn              uint32
	routerID, listen string
	neighbors        []string
	clients          []string
}

func bgpFlags() []string {
	return []string{"bgp-as", "bgp-router-id", "bgp-listen", "bgp-neighbor", "bgp-clients"}
}

func (o *bgpOptions) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Uint32Var(&o.asn, "bgp-as", 0, "evpn: number of the autonomous system of this node")
	f.StringVar(&o.routerID, "bgp-router-id", "", "evpn: IPv4 address that names this node in the autonomous system")
	f.StringVar(&o.listen, "bgp-listen", "", "evpn: PORT on 127.0.0.1, or ADDRESS[:PORT], where others begin sessions (default: nowhere)")
	f.StringArrayVar(&o.neighbors, "bgp-neighbor", nil, "evpn: ADDRESS[:PORT][,as=N][,passive][,client][,password-file=FILE]; may be repeated")
	f.StringArrayVar(&o.clients, "bgp-clients", nil, "evpn: prefix whose addresses may begin sessions, for which this node is a route reflector")
}

func (o *bgpOptions) config() (evpn.Config, error) {
	cfg := evpn.Config{ASN: o.asn}
	if o.asn == 0 {
		return cfg, usagef("--bgp-as is missing: the number of the autonomous system of this node, such as 64512")
	}
	var err error
	if cfg.RouterID, err = netip.ParseAddr(o.routerID); err != nil || !cfg.RouterID.Is4() || cfg.RouterID.IsUnspecified() {
		return cfg, usagef("--bgp-router-id %q must be an IPv4 address that no other speaker has, such as that of this node", o.routerID)
	}
	if o.listen != "" {
		if cfg.ListenAddress, cfg.ListenPort, err = parseBGPListen(o.listen); err != nil {
			return cfg, usagef("--bgp-listen %q: %w", o.listen, err)
		}
	}
	for _, text := range o.neighbors {
		n, err := parseNeighbor(text)
		if err != nil {
			return cfg, usagef("--bgp-neighbor %q: %w", text, err)
		}
		switch {
		case n.Passive && cfg.ListenPort == 0:
			return cfg, usagef("--bgp-neighbor %q is passive, so give --bgp-listen, where it begins the session", text)
		case n.Client && n.ASN != 0 && n.ASN != o.asn:
			return cfg, usagef("--bgp-neighbor %q: a client is of the own autonomous system: leave out as=%d or client", text, n.ASN)
		case slices.ContainsFunc(cfg.Neighbors, func(m evpn.Neighbor) bool { return m.Address == n.Address }):
			return cfg, usagef("--bgp-neighbor %q: that address was given before, and there is one session with each", text)
		}
		cfg.Neighbors = append(cfg.Neighbors, n)
	}
	for _, text := range o.clients {
		p, err := netip.ParsePrefix(text)
		if err != nil || p != p.Masked() {
			return cfg, usagef("--bgp-clients %q must be a prefix such as 192.0.2.0/24", text)
		}
		cfg.Clients = append(cfg.Clients, p)
	}
	switch {
	case len(cfg.Clients) > 0 && cfg.ListenPort == 0:
		return cfg, usagef("--bgp-clients needs --bgp-listen, where they begin sessions")
	case len(cfg.Clients) == 0 && len(cfg.Neighbors) == 0:
		return cfg, usagef("--bgp-neighbor is missing: a router, a route reflector or another node; or --bgp-clients")
	}
	return cfg, nil
}

// parseBGPListen reads PORT, ADDRESS or ADDRESS:PORT.
func parseBGPListen(text string) (netip.Addr, int, error) {
	if port, err := strconv.ParseUint(strings.TrimPrefix(text, ":"), 10, 16); err == nil && port != 0 {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), int(port), nil
	}
	return parseBGPAddress(text)
}

// parseBGPAddress reads ADDRESS or ADDRESS:PORT.
func parseBGPAddress(text string) (netip.Addr, int, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return a, evpn.DefaultPort, nil
	}
	a, err := netip.ParseAddrPort(text)
	if err != nil || a.Port() == 0 {
		return netip.Addr{}, 0, errors.New("must be an IP address, or ADDRESS:PORT as in 192.0.2.1:1179 or [2001:db8::1]:1179")
	}
	return a.Addr(), int(a.Port()), nil
}

// parseNeighbor reads ADDRESS[:PORT][,as=N][,passive][,client][,password-file=FILE].
func parseNeighbor(text string) (n evpn.Neighbor, err error) {
	parts := strings.Split(text, ",")
	if n.Address, n.Port, err = parseBGPAddress(parts[0]); err != nil {
		return n, err
	}
	if n.Address.IsUnspecified() {
		return n, errors.New("the address is that of no node")
	}
	for _, part := range parts[1:] {
		switch key, value, _ := strings.Cut(part, "="); {
		case part == "passive":
			n.Passive = true
		case part == "client":
			n.Client = true
		case key == "as":
			as, err := strconv.ParseUint(value, 10, 32)
			if err != nil || as == 0 {
				return n, fmt.Errorf("as=%s must be a number from 1 to 4294967295", value)
			}
			n.ASN = uint32(as)
		case key == "password-file":
			if n.Password, err = readPassword(value); err != nil {
				return n, fmt.Errorf("password-file: %w", err)
			}
		default:
			return n, fmt.Errorf("there is no %q: use as=N, passive, client or password-file=FILE", part)
		}
	}
	return n, nil
}

// maxPassword is how long a key of TCP MD5 signatures can be.
const maxPassword = 80

// readPassword reads the key of a session. No error has it.
func readPassword(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	password := strings.TrimSpace(string(text))
	if password == "" || len(password) > maxPassword {
		return "", fmt.Errorf("%s must hold a password of 1 to %d bytes", file, maxPassword)
	}
	return password, nil
}
