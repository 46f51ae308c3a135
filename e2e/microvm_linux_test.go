package e2e_test

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/sandbox/sandboxtest"
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

// The image's user, working directory and environment are as in a container, in
// the machine that is booted and in one from the snapshot.
func TestAnImageRunsInMachinesAsItSays(t *testing.T) {
	testenv.Need(t, testenv.QEMU, testenv.GuestImages, testenv.CC, testenv.Root)
	program := readFile(t, filepath.Join(sandboxtest.BuildBehave(t), "bootstrap"))
	archive := imageArchive(t,
		v1.Config{Entrypoint: []string{"/app/run"}, Env: []string{"FROM_IMAGE=yes"}, WorkingDir: "/app", User: "app"},
		map[string]string{"app/run": program, "app/data": "of the image", "etc/passwd": "root:x:0:0::/:/bin/sh\napp:x:1234:1234::/:/bin/sh\n"})
	d, api := startServer(t, "--driver", "microvm")
	api.succeed(t, "deploy", "boxed", "--image", archive, "--memory", "128MB", "--timeout", "60s")
	for range 2 {
		for event, want := range map[string]string{
			`{"do":"user"}`:                                     `"uid":1234`,
			`{"do":"read","text":"data"}`:                       "of the image",
			`{"do":"read","text":"/proc/self/environ"}`:         "FROM_IMAGE=yes",
			`{"do":"write","text":"/app/x","bytes":1}`:          "read-only file system",
			`{"do":"write","text":"/tmp/something","bytes":1}`:  "null",
			`{"do":"read","text":"/proc/sys/kernel/osrelease"}`: "cloud",
		} {
			if e := api.run(t, "invoke", "boxed", "-d", event); !strings.Contains(e.stdout, want) {
				t.Errorf("%s: %s%s; want %s", event, e.stdout, e.stderr, want)
			}
		}
		eventually(t, "a snapshot", func() bool { return strings.Contains(d.out.String(), "took a snapshot") })
		// The machine that was booted ends with the function in it.
		api.run(t, "invoke", "boxed", "-d", `{"do":"exit"}`)
	}
}
