package sys

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

func TestReapAdoptedTakesOnlyEndedChildrenOfThatName(t *testing.T) {
	dir := t.TempDir()
	start := func(name string, args ...string) *os.Process {
		t.Helper()
		program := filepath.Join(dir, name)
		sleep, err := exec.LookPath("sleep")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(sleep, program); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
		p, err := os.StartProcess(program, append([]string{name}, args...), &os.ProcAttr{})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	ended, running, other := start("orphan", "0"), start("orphan", "60"), start("kept", "0")
	defer func() {
		_ = running.Kill()
		_, _ = running.Wait()
	}()
	deadline := time.Now().Add(10 * time.Second)
	for present(ended.Pid) {
		if time.Now().After(deadline) {
			t.Fatal("the ended child was not taken")
		}
		ReapAdopted("orphan")
	}
	if !present(running.Pid) {
		t.Error("the running child is gone")
	}
	if state, err := other.Wait(); err != nil || !state.Success() {
		t.Errorf("the child of another name: %v, %v", state, err)
	}
}

func present(pid int) bool {
	_, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid)))
	return err == nil
}
