package cni

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/volley-run/volley/particle"
)

// Type is what the plugin is called in a configuration.
const Type = "volley-cni"

// Versions are those of the specification that the plugin speaks.
func Versions() version.PluginInfo { return version.PluginSupports("0.4.0", "1.0.0", "1.1.0") }

// Mode is how containers are mapped to network namespaces.
type Mode string

// The modes.
const (
	// ModeNamespace gives each container a network namespace of its own, that
	// of CNI_NETNS, and in it an interface with its address.
	ModeNamespace Mode = "namespace"
	// ModeJob puts all containers of a job into one network namespace, as those
	// of a pod are. CNI_NETNS is the job's: the first container brings the
	// network into it, and each further one takes only an address of its own.
	ModeJob Mode = "job"
)

// maxDefault is how many endpoints a network has unless it says otherwise, if
// it has room: what a bridge has ports for, one of which leads to other nodes.
const maxDefault = 1022

// Config is a network configuration as the plugin is given it.
type Config struct {
	types.PluginConf
	// Network declares the network. Its name is the configuration's, its design
	// the mode's and its number of endpoints what there is room for, if not given.
	Network *particle.Spec `json:"-"`
	// Job is the name of a network that is there already, by `volley net up`,
	// instead of Network.
	Job string `json:"job"`
	// Mode is empty for ModeNamespace.
	Mode Mode `json:"mode"`
	// StateDir is as in particle.NodeConfig.
	StateDir      string `json:"stateDir"`
	RuntimeConfig struct {
		// IPs are the addresses that the runtime asks for, with or without the
		// length of a prefix.
		IPs []string `json:"ips"`
		// CgroupPath is the container's control group, seen from the root of
		// cgroup v2.
		CgroupPath string `json:"cgroupPath"`
	} `json:"runtimeConfig"`

	// Wanted are the addresses that are asked for, at most one of each family.
	Wanted []netip.Addr `json:"-"`
	// valid are the attachments that GC leaves alone; nil if none were given, not
	// even an empty list.
	valid []types.GCAttachment
}

// cniArgs are the arguments of CNI_ARGS.
type cniArgs struct {
	types.CommonArgs
	IP types.UnmarshallableString
	// What podman and Kubernetes say of every container. The names are given.
	K8S_POD_NAME, K8S_POD_NAMESPACE, K8S_POD_INFRA_CONTAINER_ID, K8S_POD_UID types.UnmarshallableString
}

// ParseConfig reads a network configuration and the arguments of CNI_ARGS.
// Unknown fields are errors, as they are in a network's declaration. The error
// is a *types.Error that names the field.
func ParseConfig(text []byte, args string) (*Config, error) {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(text, &fields); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("read network configuration: %v", err), "")
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if !known(name) {
			return nil, invalid(name, "is unknown: the fields of %s are network, job, mode and stateDir", Type)
		}
	}
	var c Config
	if err := json.Unmarshal(text, &c); err != nil {
		if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return nil, invalid(wrong.Field, "is a JSON %s, which it cannot be", wrong.Value)
		}
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("read network configuration: %v", err), "")
	}
	if c.valid = c.ValidAttachments; c.valid == nil {
		// What the specification called it at first.
		if text, ok := fields["cni.dev/attachments"]; ok {
			if err := json.Unmarshal(text, &c.valid); err != nil {
				return nil, invalid("cni.dev/attachments", "%v", err)
			}
		}
	}
	if declared, ok := fields["network"]; ok && !bytes.Equal(declared, []byte("null")) {
		spec, err := particle.ParseSpec(declared)
		if err != nil {
			return nil, invalid("network", "%v", err)
		}
		c.Network = &spec
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return nil, invalid("prevResult", "%v", err)
	}
	for _, complete := range []func() error{c.completeMode, c.completeNetwork, func() error { return c.completeWanted(args) }} {
		if err := complete(); err != nil {
			return nil, err
		}
	}
	return &c, nil
}

// known reports whether a configuration may have a field of that name.
func known(name string) bool {
	switch name {
	case "network", "job", "mode", "stateDir",
		"cniVersion", "cniVersions", "name", "type", "capabilities", "runtimeConfig", "args", "prevResult", "dns", "ipam", "disableCheck", "disableGC":
		return true
	}
	return strings.HasPrefix(name, "cni.dev/") || strings.HasPrefix(name, "_")
}

func (c *Config) completeMode() error {
	c.Mode = cmp.Or(c.Mode, ModeNamespace)
	switch {
	case c.Mode != ModeNamespace && c.Mode != ModeJob:
		return invalid("mode", "%q is unknown: use %q or %q", c.Mode, ModeNamespace, ModeJob)
	case c.Network == nil && c.Job == "":
		return invalid("network", "is missing: declare one, or name in \"job\" one that \"volley net up\" has made")
	case c.Network != nil && c.Job != "":
		return invalid("job", "is given besides \"network\": leave one of them out")
	case c.Job != "" && !particle.ValidName(c.Job):
		return invalid("job", "%q must be lower-case letters, digits and '-', at most 40", c.Job)
	case c.IPAM.Type != "":
		return invalid("ipam", "cannot be: %s gives out the network's addresses itself; leave it out", Type)
	case c.StateDir != "" && !filepath.IsAbs(c.StateDir):
		return invalid("stateDir", "%q is not absolute: a plugin is started anywhere", c.StateDir)
	}
	return nil
}

func (c *Config) completeNetwork() error {
	if c.Network == nil {
		return nil
	}
	s := c.Network
	s.Name = cmp.Or(s.Name, c.Name)
	if c.Mode == ModeNamespace {
		s.Design = cmp.Or(s.Design, particle.Attached)
	}
	*s = s.WithDefaults()
	if err := checkDesign("network.design", s.Design, c.Mode); err != nil {
		return err
	}
	if err := s.Validate(); err != nil {
		return specError(err)
	}
	if s.Endpoints == 0 {
		s.Endpoints = min(s.Room(), maxDefault)
	}
	return nil
}

// checkDesign returns an error of that field unless a mode goes with a design.
func checkDesign(field string, d particle.Design, m Mode) error {
	switch {
	case m == ModeNamespace && d != particle.Attached:
		return invalid(field, "the design %s does not go with mode %q, whose containers have a namespace each: use %s, or mode %q", d, m, particle.Attached, ModeJob)
	case m == ModeJob && d != particle.AnyIP && d != particle.Consolidated:
		return invalid(field, "the design %s does not go with mode %q, whose containers share a namespace: use %s or %s, or mode %q", d, m, particle.AnyIP, particle.Consolidated, ModeNamespace)
	}
	return nil
}

func (c *Config) completeWanted(args string) error {
	var a cniArgs
	if err := types.LoadArgs(args, &a); err != nil {
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_ARGS: %v", err), "")
	}
	texts, field := c.RuntimeConfig.IPs, "runtimeConfig.ips"
	if len(texts) == 0 && a.IP != "" {
		texts, field = []string{string(a.IP)}, "CNI_ARGS: IP"
	}
	for _, text := range texts {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			prefix, prefixErr := netip.ParsePrefix(text)
			if prefixErr != nil {
				return invalid(field, "%q is no IP address", text)
			}
			ip = prefix.Addr()
		}
		ip = ip.Unmap()
		if slices.ContainsFunc(c.Wanted, func(o netip.Addr) bool { return o.Is4() == ip.Is4() }) {
			return invalid(field, "%s is a second address of its family: an endpoint has one of each", ip)
		}
		c.Wanted = append(c.Wanted, ip)
	}
	return nil
}

// JobName is the name of the network.
func (c *Config) JobName() string {
	if c.Network != nil {
		return c.Network.Name
	}
	return c.Job
}
