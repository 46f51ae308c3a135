package microvm_test

import (
	"os"
	"testing"
	"time"

	"github.com/volley-run/volley/faasnap/guest"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/microvm"
	"github.com/volley-run/volley/sandbox/sandboxtest"
)

const (
	// usualInvocations is how many invocations a day make a function worth a
	// snapshot here: no test has so many. Recording takes as long as some tests.
	usualInvocations = 50
	initTimeout      = 10 * time.Second
	maxProcesses     = 60
	envSuite         = "VOLLEY_TEST_MICROVM_SUITE"
)

// TestMachinesConform runs the suite of all drivers. Emulated guests take seconds
// to boot, so the function that most tests use has a snapshot beforehand. The
// groups in which most functions differ take many minutes even so, and are run
// where envSuite is set.
func TestMachinesConform(t *testing.T) {
	opts := sandboxtest.Options{
		Memory: true, Tmp: true, ReadOnlyRoot: true, UID: guest.FunctionID, NoNetwork: true, OwnProcesses: true, Processes: maxProcesses,
		InitTimeout: initTimeout, Slow: true, Patience: 10, SharedRevisions: true, Restored: true,
	}
	if os.Getenv(envSuite) == "" {
		opts.Groups = []string{"life", "limits"}
		t.Logf("running %q only; %s=1 runs all", opts.Groups, envSuite)
	}
	s := newService(t, t.TempDir())
	policy := microvm.DefaultPolicy()
	policy.Trial, policy.FaaSnapPerDay, policy.PlainPerDay = 0, usualInvocations, usualInvocations
	behave := sandboxtest.BuildBehave(t)
	bound := func(c *microvm.Config) { c.MaxProcesses = maxProcesses }
	d := newDriver(t, s, policy, bound)
	box := create(t, d, "usual", sandboxtest.Function(behave, opts))
	for range 2 * usualInvocations {
		resp, err := box.Invoke(t.Context(), sandbox.Request{ID: "id", Payload: []byte(`{"do": "echo"}`), Deadline: time.Now().Add(time.Minute)})
		if err != nil || resp.FunctionError != "" {
			t.Fatalf("response %+v, error %v", resp, err)
		}
	}
	awaitSnapshots(t, s, 1)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	sandboxtest.RunBehave(t, behave, func(t *testing.T) sandbox.Driver { return newDriver(t, s, policy, bound) }, opts)
}
