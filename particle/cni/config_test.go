package cni_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/volley-run/volley/particle"
	"github.com/volley-run/volley/particle/cni"
)

func TestAConfigurationIsCompleted(t *testing.T) {
	for _, tc := range []struct {
		name, text, args string
		check            func(c *cni.Config) bool
	}{
		{"the network takes the configuration's name", `{"name":"net1","network":{"prefix":"10.78.0.0/24"}}`, "",
			func(c *cni.Config) bool { return c.Network.Name == "net1" && c.JobName() == "net1" }},
		{"a name of its own stays", `{"name":"net1","network":{"name":"job1","prefix":"10.78.0.0/24"}}`, "",
			func(c *cni.Config) bool { return c.JobName() == "job1" }},
		{"each container has a namespace", `{"name":"a","network":{"prefix":"10.78.0.0/24"}}`, "",
			func(c *cni.Config) bool {
				return c.Mode == cni.ModeNamespace && c.Network.Design == particle.Attached
			}},
		{"containers of a job share one", `{"name":"a","mode":"job","network":{"prefix":"10.78.0.0/24"}}`, "",
			func(c *cni.Config) bool { return c.Mode == cni.ModeJob && c.Network.Design == particle.AnyIP }},
		{"a small prefix is used up", `{"name":"a","network":{"prefix":"10.78.0.0/29","prefix6":"fd78::/64"}}`, "",
			func(c *cni.Config) bool { return c.Network.Endpoints == 5 }},
		{"a large one as far as a bridge goes", `{"name":"a","network":{"prefix":"10.78.0.0/16"}}`, "",
			func(c *cni.Config) bool { return c.Network.Endpoints == 1022 }},
		{"a network that is there", `{"name":"a","job":"job1"}`, "",
			func(c *cni.Config) bool { return c.Network == nil && c.JobName() == "job1" }},
		{"addresses with a prefix's length or without", `{"name":"a","job":"b","runtimeConfig":{"ips":["10.78.0.9/24","fd78::9"]}}`, "IP=10.78.0.8",
			func(c *cni.Config) bool {
				return len(c.Wanted) == 2 && c.Wanted[0] == netip.MustParseAddr("10.78.0.9") && c.Wanted[1] == netip.MustParseAddr("fd78::9")
			}},
		{"an address by CNI_ARGS", `{"name":"a","job":"b"}`, "IgnoreUnknown=1;K8S_POD_NAME=x;OTHER=y;IP=10.78.0.8",
			func(c *cni.Config) bool {
				return len(c.Wanted) == 1 && c.Wanted[0] == netip.MustParseAddr("10.78.0.8")
			}},
		{"what runtimes add", `{"name":"a","job":"b","type":"volley-cni","cniVersion":"1.1.0","capabilities":{"ips":true},"args":{},"dns":{},"cni.dev/valid-attachments":[],"_comment":"x"}`, "",
			func(c *cni.Config) bool { return c.CNIVersion == "1.1.0" }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := cni.ParseConfig([]byte(tc.text), tc.args)
			if err != nil {
				t.Fatal(err)
			}
			if !tc.check(c) {
				t.Errorf("got %+v, network %+v", c, c.Network)
			}
		})
	}
}

func TestAWrongConfigurationNamesTheFieldAndARemedy(t *testing.T) {
	const network = `"network":{"prefix":"10.78.0.0/24"}`
	for _, tc := range []struct {
		name, text, args string
		code             uint
		want             string
	}{
		{"no JSON", `{`, "", types.ErrDecodingFailure, "unexpected end"},
		{"an unknown field", `{"name":"a","prefx":"10.78.0.0/24"}`, "", types.ErrInvalidNetworkConfig, "prefx: is unknown: the fields of volley-cni are"},
		{"an unknown field of the network", `{"name":"a","network":{"prefx":"10.78.0.0/24"}}`, "", types.ErrInvalidNetworkConfig, `network: json: unknown field "prefx"`},
		{"a field of the wrong type", `{"name":"a","job":7}`, "", types.ErrInvalidNetworkConfig, "job: is a JSON number"},
		{"no network", `{"name":"a"}`, "", types.ErrInvalidNetworkConfig, "network: is missing: declare one, or name"},
		{"two networks", `{"name":"a","job":"b",` + network + `}`, "", types.ErrInvalidNetworkConfig, "job: is given besides"},
		{"a job's name that leads elsewhere", `{"name":"a","job":"../b"}`, "", types.ErrInvalidNetworkConfig, "job: \"../b\" must be"},
		{"an unknown mode", `{"name":"a","mode":"pod",` + network + `}`, "", types.ErrInvalidNetworkConfig, `mode: "pod" is unknown: use "namespace" or "job"`},
		{"a design that shares a namespace", `{"name":"a","network":{"prefix":"10.78.0.0/24","design":"anyip"}}`, "", types.ErrInvalidNetworkConfig, "network.design: the design anyip does not go with"},
		{"a design that does not", `{"name":"a","mode":"job","network":{"prefix":"10.78.0.0/24","design":"direct"}}`, "", types.ErrInvalidNetworkConfig, "network.design: the design direct does not go with"},
		{"no prefix", `{"name":"a","network":{}}`, "", types.ErrInvalidNetworkConfig, "network.prefix: is missing"},
		{"a bad prefix", `{"name":"a","network":{"prefix":"10.78.0.1/24"}}`, "", types.ErrInvalidNetworkConfig, "did you mean 10.78.0.0/24?"},
		{"a name that no job can have", `{"name":"Net_1",` + network + `}`, "", types.ErrInvalidNetworkConfig, "network.name: "},
		{"another plugin for addresses", `{"name":"a","ipam":{"type":"host-local"},` + network + `}`, "", types.ErrInvalidNetworkConfig, "ipam: cannot be"},
		{"a relative directory", `{"name":"a","stateDir":"x",` + network + `}`, "", types.ErrInvalidNetworkConfig, "stateDir: "},
		{"a bad address", `{"name":"a","runtimeConfig":{"ips":["x"]},` + network + `}`, "", types.ErrInvalidNetworkConfig, `runtimeConfig.ips: "x" is no IP address`},
		{"a bad address by CNI_ARGS", `{"name":"a",` + network + `}`, "IP=x", types.ErrInvalidNetworkConfig, `CNI_ARGS: IP: "x" is no IP address`},
		{"bad CNI_ARGS", `{"name":"a",` + network + `}`, "IP", types.ErrInvalidEnvironmentVariables, "CNI_ARGS: "},
		{"unknown CNI_ARGS", `{"name":"a",` + network + `}`, "X=y", types.ErrInvalidEnvironmentVariables, "CNI_ARGS: "},
		{"a bad prevResult", `{"name":"a","cniVersion":"1.0.0","prevResult":{"ips":7},` + network + `}`, "", types.ErrInvalidNetworkConfig, "prevResult: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := cni.ParseConfig([]byte(tc.text), tc.args)
			got, ok := errors.AsType[*types.Error](err)
			if !ok || got.Code != tc.code || !strings.Contains(got.Msg, tc.want) {
				t.Errorf("got %#v, want code %d and %q", err, tc.code, tc.want)
			}
		})
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add(`{"cniVersion":"1.1.0","name":"a","type":"volley-cni","network":{"prefix":"10.78.0.0/24"}}`, "IP=10.78.0.9")
	f.Add(`{"name":"a","job":"b","runtimeConfig":{"ips":["fd78::9/64"],"cgroupPath":"/x"},"cni.dev/attachments":[{"containerID":"a","ifname":"b"}]}`, "")
	f.Add(`{"name":"a","cniVersion":"0.4.0","prevResult":{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.1/8"}]},"network":{"prefix6":"fd78::/64"}}`, "IgnoreUnknown=1")
	f.Fuzz(func(t *testing.T, text, args string) {
		c, err := cni.ParseConfig([]byte(text), args)
		if err != nil {
			if _, ok := errors.AsType[*types.Error](err); !ok {
				t.Errorf("the error %v has no code", err)
			}
			return
		}
		if c.Network != nil {
			if err := c.Network.Validate(); err != nil {
				t.Errorf("it took a network that is wrong: %v", err)
			}
		}
	})
}
