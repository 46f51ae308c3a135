package e2e_test

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"github.com/volley-run/volley/internal/testenv"
)

// The first machine is booted, those after it come from the snapshot that its
// first event was recorded for, also after a restart of the server.
func TestFunctionsRunInMachinesThatComeFromASnapshot(t *testing.T) {
	testenv.Need(t, testenv.QEMU, testenv.GuestImages, testenv.CC, testenv.Root)
	data := t.TempDir()
	d, api := startServerIn(t, data, "--driver", "microvm")
	api.succeed(t, "deploy", "guest", pythonFunction(t, `
import os, time

restored = 0

def after_restore():
    global restored
    restored += 1

def handler(event, context):
    time.sleep(event.get("sleep", 0))
    return {"restored": restored, "cpu": os.uname().release, "greeting": os.environ["GREETING"]}
`), "--env", "GREETING=hello", "--memory", "128MB", "--timeout", "60s")
	type answer struct {
		Restored      int
		CPU, Greeting string
	}
	invoke := func(event string) answer {
		e := api.run(t, "invoke", "guest", "-d", event)
		var a answer
		if err := json.Unmarshal([]byte(e.stdout), &a); err != nil || e.code != 0 || a.Greeting != "hello" {
			t.Errorf("exit status %d, %v: %s%s", e.code, err, e.stdout, e.stderr)
		}
		return a
	}
	if a := invoke("{}"); a.Restored != 0 || !strings.Contains(a.CPU, "cloud") {
		t.Errorf("the machine that was booted answers %+v", a)
	}
	eventually(t, "a snapshot", func() bool { return strings.Contains(d.out.String(), "took a snapshot") })
	// Two at once need two machines; the one that was booted is still there.
	var answers [2]answer
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() { answers[i] = invoke(`{"sleep": 2}`) })
	}
	wg.Wait()
	if answers[0].Restored+answers[1].Restored != 1 {
		t.Errorf("two at once answer %+v; want one that was restored, once", answers)
	}
	d.stop(t)
	_, api = startServerIn(t, data, "--driver", "microvm")
	if a := invoke("{}"); a.Restored != 1 {
		t.Errorf("after a restart: %+v; want an answer from a machine of the snapshot", a)
	}
}
