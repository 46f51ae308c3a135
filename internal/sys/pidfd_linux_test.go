package sys

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestAProcessIsHeldKilledAndWaitedFor(t *testing.T) {
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := OpenProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Pid() != cmd.Process.Pid {
		t.Errorf("Pid = %d", p.Pid())
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := p.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait for a process that runs: %v", err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Wait(t.Context()); err != nil {
			t.Errorf("Wait: %v", err)
		}
		if err := p.Kill(); err != nil {
			t.Errorf("Kill after the end: %v", err)
		}
	}
	if _, err := OpenProcess(cmd.Process.Pid); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("open a process that is gone: %v", err)
	}
	_ = cmd.Wait() // its status has been taken
}

func TestClosingEndsEveryWait(t *testing.T) {
	p, err := OpenProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	waited := make(chan error)
	go func() { waited <- p.Wait(context.Background()) }()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Wait: %v", err)
	}
}
