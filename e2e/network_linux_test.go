package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/volley-run/volley/internal/testenv"
)

// networkName returns a name that no other test has, and removes the network
// of that name at the end.
func networkName(t *testing.T, state string) string {
	t.Helper()
	name := fmt.Sprintf("e2e-%d", os.Getpid())
	t.Cleanup(func() {
		for _, args := range [][]string{{"net", "down", name, "--force", "--state", state}, {"net", "gc", "--state", state}} {
			if out, err := exec.Command(volley, args...).CombinedOutput(); err != nil {
				t.Errorf("volley %s: %v: %s", strings.Join(args, " "), err, out)
			}
		}
	})
	return name
}

func netSucceed(t *testing.T, args ...string) string {
	t.Helper()
	e := runVolley(t, append([]string{"net"}, args...)...)
	if e.code != 0 {
		t.Fatalf("volley net %s: exit status %d\n%s%s", strings.Join(args, " "), e.code, e.stdout, e.stderr)
	}
	return e.stdout
}

func TestProgramsOnANetworkListenOnTheSamePortAtAddressesOfTheirOwn(t *testing.T) {
	testenv.Need(t, testenv.CgroupBPF, testenv.Python3)
	state := t.TempDir()
	name := networkName(t, state)
	netSucceed(t, "up", "--name", name, "--prefix", "10.98.0.0/16", "--endpoints", "100", "--state", state)
	netSucceed(t, "up", "--name", name, "--prefix", "10.98.0.0/16", "--endpoints", "100", "--state", state)
	if out := netSucceed(t, "ls", "--state", state); !strings.Contains(out, name) || !strings.Contains(out, "anyip") {
		t.Errorf("ls: %s", out)
	}
	// Two servers on every address's port 8080, and a client that says where it comes from.
	for i := range 2 {
		server := exec.Command(volley, "net", "exec", "--state", state, name, fmt.Sprint(i), "--", "python3", "-c", `
import os, socket, sys
s = socket.create_server(("", 8080))
print("ready", flush=True)
while True:
    c, peer = s.accept()
    c.sendall((os.environ["VOLLEY_ADDRESS"] + " " + peer[0]).encode())
    c.close()
`)
		out := &testenv.Buffer{}
		server.Stdout, server.Stderr = out, out
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = server.Process.Kill()
			_ = server.Wait()
		})
		eventually(t, "the server to listen", func() bool { return strings.Contains(out.String(), "ready") })
	}
	for i := range 2 {
		address := fmt.Sprintf("10.98.0.%d", 2+i)
		out := netSucceed(t, "exec", "--state", state, name, "7", "--", "python3", "-c",
			"import socket, sys; print(socket.create_connection((sys.argv[1], 8080)).recv(100).decode())", address)
		if want := address + " 10.98.0.9\n"; out != want {
			t.Errorf("server %d and its client are %q, want %q", i, out, want)
		}
	}
	if e := runVolley(t, "net", "down", name, "--state", state); e.code != 1 || !strings.Contains(e.stderr, "in use by 2 processes") {
		t.Errorf("down while in use: exit status %d, %s", e.code, e.stderr)
	}
	if e := runVolley(t, "net", "exec", "--state", state, name, "100", "--", "true"); e.code != 4 {
		t.Errorf("an endpoint that is not there: exit status %d, %s", e.code, e.stderr)
	}
	if e := runVolley(t, "net", "exec", "--state", state, name, "5", "--", "sh", "-c", "exit 33"); e.code != 33 {
		t.Errorf("the program's exit status became %d: %s", e.code, e.stderr)
	}
}

func TestABadDeclarationNamesTheFieldAndMakesNothing(t *testing.T) {
	testenv.Need(t, testenv.NetAdmin)
	state := t.TempDir()
	file := filepath.Join(t.TempDir(), "net.json")
	for name, tc := range map[string]struct {
		text string
		args []string
		code int
		want string
	}{
		"a prefix with bits behind it": {"", []string{"--name", "a", "--prefix", "10.77.0.1/16"}, 2, "did you mean 10.77.0.0/16"},
		"no prefix":                    {"", []string{"--name", "a"}, 2, "prefix: is missing"},
		"too many endpoints":           {"", []string{"--name", "a", "--prefix", "10.77.0.0/24", "--endpoints", "254"}, 2, "253"},
		"an unknown field":             {`{"name": "a", "prefx": "10.0.0.0/8"}`, []string{file}, 4, "prefx"},
		"an empty file":                {"", []string{file}, 4, "empty"},
		"no file":                      {"", []string{filepath.Join(state, "nothing")}, 4, "no such file"},
		"a peer without underlay":      {"", []string{"--name", "a", "--prefix", "10.77.0.0/16", "--peer", "b=1"}, 2, "--peer"},
		"an unknown design":            {"", []string{"--name", "a", "--prefix", "10.77.0.0/16", "--design", "magic"}, 2, "anyip"},
	} {
		t.Run(name, func(t *testing.T) {
			writeFile(t, file, tc.text)
			e := runVolley(t, append([]string{"net", "up", "--state", state}, tc.args...)...)
			if e.code != tc.code || !strings.Contains(e.stderr, tc.want) {
				t.Errorf("exit status %d, want %d with %q: %s", e.code, tc.code, tc.want, e.stderr)
			}
		})
	}
	if out := netSucceed(t, "ls", "--json", "--state", state); strings.TrimSpace(out) != "[]" {
		t.Errorf("there are networks: %s", out)
	}
}

func TestFunctionsOnAJobsNetworkReachEachOther(t *testing.T) {
	testenv.Need(t, testenv.Runc, testenv.CgroupBPF, testenv.Python3)
	state := t.TempDir()
	name := networkName(t, state)
	netSucceed(t, "up", "--name", name, "--prefix", "10.97.0.0/16", "--endpoints", "20", "--state", state)
	_, api := startServer(t, "--driver", "runc", "--net-state", state)
	dir := pythonFunction(t, `
import os, socket, threading

def answer(s):
    while True:
        c, peer = s.accept()
        c.sendall((os.environ["VOLLEY_ADDRESS"] + " " + peer[0]).encode())
        c.close()

def handler(event, context):
    if "call" in event:
        return socket.create_connection((event["call"], 8080), 5).recv(100).decode()
    s = socket.create_server(("", 8080))
    threading.Thread(target=answer, args=(s,), daemon=True).start()
    return os.environ["VOLLEY_ADDRESS"]
`)
	call := func(function, event string) string {
		t.Helper()
		var answer string
		out := api.succeed(t, "invoke", function, "-d", event)
		if err := json.Unmarshal([]byte(out), &answer); err != nil {
			t.Fatalf("%s: %s", err, out)
		}
		return answer
	}
	for _, f := range []string{"one", "two"} {
		api.succeed(t, "deploy", f, dir, "--network", "net:"+name)
	}
	one, two := call("one", "{}"), call("two", "{}")
	if one == two {
		t.Fatalf("both have %s", one)
	}
	if got, want := call("one", fmt.Sprintf(`{"call": %q}`, two)), two+" "+one; got != want {
		t.Errorf("one calls two: %q, want %q", got, want)
	}
	if got, want := call("two", fmt.Sprintf(`{"call": %q}`, one)), one+" "+two; got != want {
		t.Errorf("two calls one: %q, want %q", got, want)
	}
	if out := netSucceed(t, "show", name, "--state", state); strings.Count(out, "in use") != 2 {
		t.Errorf("show: %s", out)
	}
	for _, f := range []string{"one", "two"} {
		api.succeed(t, "delete", f)
	}
	eventually(t, "the endpoints to be free", func() bool { return !strings.Contains(netSucceed(t, "show", name, "--state", state), "in use") })

	api.succeed(t, "deploy", "lost", dir, "--network", "net:no-such-network")
	if e := api.run(t, "invoke", "lost"); e.code != 6 || !strings.Contains(e.stderr, "volley net up") {
		t.Errorf("a network that is not there: exit status %d, %s%s", e.code, e.stdout, e.stderr)
	}
}

// Machines, booted and restored, are on the network as containers are: they
// reach each other and programs on this node and on another, at their own
// addresses.
func TestMachinesOnAJobsNetworkReachEachOther(t *testing.T) {
	testenv.Need(t, testenv.QEMU, testenv.GuestImages, testenv.CC, testenv.CgroupBPF, testenv.Python3)
	nodes, states := [2]string{}, [2]string{t.TempDir(), t.TempDir()}
	nodes[0], nodes[1] = netNodes(t)
	const name, port = "machines", "8080"
	for i := range nodes {
		t.Cleanup(func() {
			for _, args := range [][]string{{"net", "down", name, "--force", "--state", states[i]}, {"net", "gc", "--state", states[i]}} {
				if out, err := onNode(nodes[i], args...).CombinedOutput(); err != nil {
					t.Errorf("volley %s: %v: %s", strings.Join(args, " "), err, out)
				}
			}
		})
		if out, err := onNode(nodes[i], "net", "up", "--name", name, "--prefix", "10.95.0.0/16", "--node-prefix", fmt.Sprintf("10.95.%d.0/24", i),
			"--prefix6", "fd95::/48", "--node-prefix6", fmt.Sprintf("fd95:0:0:%d::/64", i), "--endpoints", "9", "--underlay", fmt.Sprintf("192.0.2.%d", 1+i),
			"--peer", fmt.Sprintf("other=192.0.2.%d,10.95.%d.0/24,fd95:0:0:%d::/64", 2-i, 1-i, 1-i), "--state", states[i]).CombinedOutput(); err != nil {
			t.Fatalf("net up: %v: %s", err, out)
		}
	}
	const serve = `
import os, socket, threading

def answer(s):
    while True:
        c, peer = s.accept()
        c.sendall(peer[0].encode())
        c.close()

def serve():
    threading.Thread(target=answer, args=(socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True),)).start()

def call(address):
    return socket.create_connection((address, 8080), 10).recv(100).decode()
`
	// A program on each node, as endpoint 7.
	for i := range nodes {
		program := onNode(nodes[i], "net", "exec", "--state", states[i], name, "7", "--", "python3", "-c", serve+"serve()\nprint('ready', flush=True)")
		out := &testenv.Buffer{}
		program.Stdout, program.Stderr = out, out
		if err := program.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = program.Process.Kill()
			_ = program.Wait()
		})
		eventually(t, "the program to listen", func() bool { return strings.Contains(out.String(), "ready") })
	}
	data := t.TempDir()
	d, api := startServerIn(t, data, "--driver", "microvm", "--net-state", states[0])
	api.succeed(t, "deploy", "guest", pythonFunction(t, serve+`
import time

restored = 0
serve()

def after_restore():
    global restored
    restored += 1

def handler(event, context):
    time.sleep(event.get("sleep", 0))
    own = [os.environ["VOLLEY_ADDRESS"], os.environ["VOLLEY_ADDRESS6"]]
    return {"restored": restored, "own": own, "seen": [call(a) for a in event.get("call", [])]}
`), "--memory", "128MB", "--timeout", "60s", "--network", "net:"+name)
	type answer struct {
		Restored  int
		Own, Seen []string
	}
	invoke := func(event string) (a answer) {
		t.Helper()
		if err := json.Unmarshal([]byte(api.succeed(t, "invoke", "guest", "-d", event)), &a); err != nil {
			t.Fatal(err)
		}
		return a
	}
	if booted := invoke("{}"); booted.Restored != 0 {
		t.Errorf("the machine that was booted answers %+v", booted)
	}
	eventually(t, "a snapshot", func() bool { return strings.Contains(d.out.String(), "took a snapshot") })
	// Three at once need three machines.
	programs := `"10.95.0.9", "10.95.1.9", "fd95::9", "fd95:0:0:1::9"`
	var answers [3]answer
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() { answers[i] = invoke(`{"sleep": 3, "call": [` + programs + `]}`) })
	}
	wg.Wait()
	taken, restored := map[string]bool{}, 0
	for _, a := range answers {
		restored += a.Restored
		for _, own := range a.Own {
			taken[own] = true
		}
		if want := []string{"::ffff:" + a.Own[0], "::ffff:" + a.Own[0], a.Own[1], a.Own[1]}; !slices.Equal(a.Seen, want) {
			t.Errorf("a machine calls programs: they see %v, want %v", a.Seen, want)
		}
	}
	if restored != 2 || len(taken) != 6 {
		t.Errorf("three machines have %v, %d of them restored; want two addresses each, and two restored", taken, restored)
	}
	// All call all: the machine that answers is one of them.
	var others []string
	for address := range taken {
		others = append(others, fmt.Sprintf("%q", address))
	}
	a := invoke(`{"call": [` + strings.Join(others, ",") + `]}`)
	for _, seen := range a.Seen {
		if !slices.Contains([]string{"::ffff:" + a.Own[0], a.Own[1]}, seen) {
			t.Errorf("machine %v is seen as %s", a.Own, seen)
		}
	}
	// Programs call machines.
	for i := range nodes {
		for address := range taken {
			out, err := onNode(nodes[i], "net", "exec", "--state", states[i], name, "8", "--", "python3", "-c", serve+"print(call("+fmt.Sprintf("%q", address)+"))").Output()
			if got := strings.TrimSpace(string(out)); err != nil || !strings.HasSuffix(got, "::a") && !strings.HasSuffix(got, ".10") {
				t.Errorf("a program of node %d calls %s: it is seen as %q, %v", i, address, got, err)
			}
		}
	}
	free := func() bool {
		t.Helper()
		out, err := onNode(nodes[0], "net", "show", name, "--json", "--state", states[0]).Output()
		var shown struct{ Namespace string }
		if err == nil {
			err = json.Unmarshal(out, &shown)
		}
		if err != nil {
			t.Fatal(err)
		}
		links, err := exec.Command("nsenter", "--net="+shown.Namespace, "ip", "-brief", "link").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, links)
		}
		taps := strings.Count(string(links), "\n") - 2 // lo and eth0
		return taps == 0 && !strings.Contains(string(out), `"sandbox `)
	}
	if free() {
		t.Error("machines have no taps")
	}
	// What a server that was killed left is free for the next.
	d.kill(t)
	_, api = startServerIn(t, data, "--driver", "microvm", "--net-state", states[0])
	if !free() {
		t.Error("after a crash machines still have taps")
	}
	if a := invoke(`{"call": [` + programs + `]}`); a.Restored != 1 || len(a.Seen) != 4 {
		t.Errorf("after a crash: %+v; want an answer from a machine of the snapshot", a)
	}
	api.succeed(t, "delete", "guest")
	eventually(t, "the endpoints to be free", free)
}

// netNodes makes two network namespaces that stand for machines, joined by a
// cable, and returns their names. The first has 192.0.2.1, the second 192.0.2.2.
func netNodes(t *testing.T) (a, b string) {
	t.Helper()
	a, b = fmt.Sprintf("e2e-a-%d", os.Getpid()), fmt.Sprintf("e2e-b-%d", os.Getpid())
	t.Cleanup(func() {
		for _, name := range []string{a, b} {
			if out, err := exec.Command("ip", "netns", "delete", name).CombinedOutput(); err != nil {
				t.Errorf("ip netns delete %s: %v: %s", name, err, out)
			}
		}
	})
	for _, line := range []string{
		"netns add " + a, "netns add " + b,
		"link add name u0 netns " + a + " type veth peer name u0 netns " + b,
		"-n " + a + " link set lo up", "-n " + b + " link set lo up",
		"-n " + a + " addr add 192.0.2.1/24 dev u0", "-n " + b + " addr add 192.0.2.2/24 dev u0",
		"-n " + a + " link set u0 up", "-n " + b + " link set u0 up",
	} {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", line, err, out)
		}
	}
	return a, b
}

// onNode is a volley command on one of them.
func onNode(node string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=/run/netns/" + node, volley}, args...)...)
}

// agents is how two nodes' agents, and `net up` and `net down` there, are told
// of a control plane.
type agents struct{ agent, up, down [2][]string }

func TestNodesHearOfEachOtherByTheirAgents(t *testing.T) {
	testAgents(t, func(start func(node int, ready string, args ...string)) (a agents) {
		data := t.TempDir()
		start(0, "(Ctrl-C ends)", "nats", "--data", data, "--listen", "192.0.2.1:4222")
		nats := []string{"--nats", "nats://192.0.2.1:4222", "--token-file", filepath.Join(data, "nats-token")}
		for i := range 2 {
			a.agent[i], a.up[i], a.down[i] = nats, append([]string{"--claim", "24"}, nats...), nats
		}
		return a
	})
}

func TestNodesHearOfEachOtherByBGP(t *testing.T) {
	testAgents(t, func(func(int, string, ...string)) (a agents) {
		password := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(password, []byte("between agents\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		for i, more := range []string{
			"--bgp-router-id 192.0.2.1 --bgp-listen 192.0.2.1:1179 --bgp-neighbor 192.0.2.2,client,passive,password-file=",
			"--bgp-router-id 192.0.2.2 --bgp-neighbor 192.0.2.1:1179,password-file=",
		} {
			a.agent[i] = strings.Fields("--control evpn --bgp-as 64512 " + more + password)
			a.up[i] = []string{"--node-prefix", fmt.Sprintf("10.96.%d.0/24", i)}
		}
		return a
	})
}

func testAgents(t *testing.T, setup func(start func(node int, ready string, args ...string)) agents) {
	testenv.Need(t, testenv.CgroupBPF, testenv.Python3)
	nodes := [2]string{}
	nodes[0], nodes[1] = netNodes(t)
	states := [2]string{t.TempDir(), t.TempDir()}
	run := func(i int, args ...string) string {
		t.Helper()
		out, err := onNode(nodes[i], append([]string{"net"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("volley net %s: %v: %s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	start := func(node int, ready string, args ...string) {
		t.Helper()
		cmd := onNode(nodes[node], args...)
		out := &testenv.Buffer{}
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Signal(os.Interrupt)
			_ = cmd.Wait()
			if t.Failed() {
				t.Logf("%s:\n%s", strings.Join(cmd.Args, " "), lastLines(out.String(), 20))
			}
		})
		eventually(t, cmd.Args[len(cmd.Args)-1]+" to be ready", func() bool { return strings.Contains(out.String(), ready) })
	}
	control := setup(start)
	for i := range nodes {
		start(i, "(Ctrl-C ends)", append([]string{"net", "agent", "--state", states[i]}, control.agent[i]...)...)
	}
	const name = "agents"
	for i := range nodes {
		t.Cleanup(func() {
			for _, args := range [][]string{append([]string{"net", "down", name, "--force", "--state", states[i]}, control.down[i]...), {"net", "gc", "--state", states[i]}} {
				if out, err := onNode(nodes[i], args...).CombinedOutput(); err != nil {
					t.Errorf("volley %s: %v: %s", strings.Join(args, " "), err, out)
				}
			}
		})
		run(i, append([]string{"up", "--name", name, "--prefix", "10.96.0.0/16", "--endpoints", "10",
			"--underlay", fmt.Sprintf("192.0.2.%d", 1+i), "--state", states[i]}, control.up[i]...)...)
	}
	for i := range nodes {
		eventually(t, "the nodes to know each other", func() bool { return strings.Contains(run(i, "show", name, "--state", states[i]), "peer") })
	}
	var shown [2]struct {
		Spec struct{ NodePrefix string }
	}
	for i := range nodes {
		if err := json.Unmarshal([]byte(run(i, "show", name, "--json", "--state", states[i])), &shown[i]); err != nil {
			t.Fatal(err)
		}
	}
	if shown[0].Spec.NodePrefix == shown[1].Spec.NodePrefix {
		t.Fatalf("both nodes have %s", shown[0].Spec.NodePrefix)
	}
	address := func(i, last int) string {
		return fmt.Sprint(strings.TrimSuffix(shown[i].Spec.NodePrefix, "0/24"), last)
	}
	start(1, "ready", "net", "exec", "--state", states[1], name, "3", "--", "python3", "-c", `
import socket
s = socket.create_server(("", 8080))
print("ready", flush=True)
while True:
    c, peer = s.accept()
    c.sendall(peer[0].encode())
    c.close()
`)
	got := run(0, "exec", "--state", states[0], name, "4", "--", "python3", "-c",
		"import socket, sys; print(socket.create_connection((sys.argv[1], 8080), 10).recv(100).decode())", address(1, 5))
	if want := address(0, 6) + "\n"; got != want {
		t.Errorf("the server saw %q, want %q", got, want)
	}
}
