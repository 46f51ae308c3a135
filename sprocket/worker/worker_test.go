package worker

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/sprocket/stage"
	"github.com/volley-run/volley/sprocket/workerpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeStream is a coordinator's end of a stream: commands are taken from a
// channel, reports are kept.
type fakeStream struct {
	grpc.BidiStreamingClient[workerpb.Report, workerpb.Command]
	commands chan *workerpb.Command
	reports  chan *workerpb.Report
}

var errHungUp = errors.New("the coordinator hung up")

func (s *fakeStream) Recv() (*workerpb.Command, error) {
	cmd, ok := <-s.commands
	if !ok {
		return nil, errHungUp
	}
	return cmd, nil
}

func (s *fakeStream) Send(r *workerpb.Report) error { s.reports <- r; return nil }

// status returns the next Status, after any Progress.
func (s *fakeStream) status() *workerpb.Status {
	for r := range s.reports {
		if st := r.GetStatus(); st != nil {
			return st
		}
	}
	return nil
}

// start runs a worker's loop. The returned function waits for its end.
func start(t *testing.T) (*fakeStream, Config, func() error) {
	t.Helper()
	s := &fakeStream{commands: make(chan *workerpb.Command), reports: make(chan *workerpb.Report, 100)}
	w := &worker{cfg: Config{Dir: t.TempDir(), FFmpeg: "ffmpeg"}, stream: s}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		err := w.loop(ctx, cancel)
		w.closeTask()
		done <- err
	}()
	return s, w.cfg, func() error { defer cancel(); return <-done }
}

func roleText(t *testing.T, command ...string) []byte {
	t.Helper()
	text, err := json.Marshal(command)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	role := stage.Role{
		OutputURL: filepath.Join(dir, "out"), WorkURL: filepath.Join(dir, "work"), TimeBase: sprocket.Rational{Num: 1, Den: 25},
		Inputs: []stage.Input{{Name: "in"}},
		Node: sprocket.Node{
			Name: "mine", Output: sprocket.Images, OutputIndex: -1, Upstreams: []sprocket.Upstream{{Type: sprocket.Chunks}},
			Stages: []sprocket.StageUse{{Node: "mine", Stage: "exec", Params: sprocket.Params{"command": text, "timeout": json.RawMessage("600")}}},
		},
	}
	out, err := json.Marshal(role)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func taskText(t *testing.T) []byte {
	t.Helper()
	text, err := json.Marshal(sprocket.Task{Seq: 3, Inputs: [][]sprocket.Item{{{Type: sprocket.Chunks, Seq: 3, Start: 10, End: 20}}}})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func role(id uint64, text []byte) *workerpb.Command {
	return &workerpb.Command{Id: id, Kind: &workerpb.Command_Role{Role: &workerpb.Role{Role: text}}}
}

func fetch(id uint64, text []byte) *workerpb.Command {
	return &workerpb.Command{Id: id, Kind: &workerpb.Command_Fetch{Fetch: &workerpb.Fetch{Task: text}}}
}

func process(id uint64) *workerpb.Command {
	return &workerpb.Command{Id: id, Kind: &workerpb.Command_Process{Process: &workerpb.Process{}}}
}

func emit(id uint64) *workerpb.Command {
	return &workerpb.Command{Id: id, Kind: &workerpb.Command_Emit{Emit: &workerpb.Emit{}}}
}

func exit() *workerpb.Command {
	return &workerpb.Command{Kind: &workerpb.Command_Exit{Exit: &workerpb.Exit{}}}
}

func TestAWorkerGoesThroughItsStepsAndLeavesNothing(t *testing.T) {
	s, cfg, wait := start(t)
	// A stretch without chunks: the command has nothing to do.
	for i, cmd := range []*workerpb.Command{role(1, roleText(t, "true")), fetch(2, taskText(t)), process(3), emit(4)} {
		s.commands <- cmd
		st := s.status()
		if st.Command != uint64(i+1) || st.Failure != nil {
			t.Fatalf("command %d was answered by %v", i+1, st)
		}
		if i == 3 {
			var res stage.Result
			if err := json.Unmarshal(st.Result, &res); err != nil || res.Item.Seq != 3 || res.Item.End != 20 {
				t.Errorf("result %s: %v", st.Result, err)
			}
		}
	}
	s.commands <- exit()
	if err := wait(); err != nil {
		t.Errorf("an orderly end: %v", err)
	}
	left, err := os.ReadDir(cfg.Dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestCommandsOutOfOrderFailAndTheWorkerGoesOn(t *testing.T) {
	s, _, wait := start(t)
	for _, tc := range []struct {
		cmd  *workerpb.Command
		want string
	}{
		{process(1), "no task was fetched"},
		{emit(2), "no task was fetched"},
		{role(3, []byte("{")), "read role"},
		{&workerpb.Command{Id: 4}, "different versions"},
		{role(5, roleText(t, "true")), ""},
		{fetch(6, []byte("{")), "read task"},
		{process(7), "no task was fetched"},
		{fetch(8, []byte(`{"inputs":[]}`)), "0 input lists for 1 streams"},
		{fetch(9, taskText(t)), ""},
	} {
		s.commands <- tc.cmd
		st := s.status()
		if got := st.GetFailure().GetMessage(); st.Command != tc.cmd.Id || !strings.Contains(got, tc.want) || (tc.want == "") != (st.Failure == nil) {
			t.Errorf("command %d: %q, want %q", st.Command, got, tc.want)
		}
	}
	close(s.commands)
	if err := wait(); !errors.Is(err, errHungUp) {
		t.Errorf("after a hang-up: %v", err)
	}
}
