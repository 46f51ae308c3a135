//go:build unix

package sys

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// helper, in the environment, makes the test binary play a part.
const helper = "VOLLEY_SYS_TEST_HELPER"

func TestMain(m *testing.M) {
	switch part, arg, _ := strings.Cut(os.Getenv(helper), ":"); part {
	case "lock":
		_, err := LockFile(arg)
		fmt.Println(errors.Is(err, ErrLocked), err == nil)
		os.Exit(0)
	case "parent":
		// Starts a child, tells its number, and is killed.
		cmd := exec.Command("sleep", "600")
		release := DieWithParent(cmd)
		defer release()
		if err := cmd.Start(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(cmd.Process.Pid)
		_ = cmd.Wait()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func as(part string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helper+"="+part)
	return cmd
}

// gone waits until a process is gone or a zombie.
func gone(t *testing.T, pid int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		runtime.Gosched()
	}
	t.Errorf("process %d still runs", pid)
}

func firstLine(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func TestALockIsHeldByOneProcessAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "dir", "lock")
	lock, err := LockFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other := func() string {
		out, err := as("lock:" + path).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	if got := other(); got != "true false" {
		t.Errorf("another process got %q, want ErrLocked", got)
	}
	if _, err := LockFile(path); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), path) {
		t.Errorf("a second lock in this process: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	// Whoever ends without unlocking does not hold it any longer.
	for range 2 {
		if got := other(); got != "false true" {
			t.Errorf("after the unlock another process got %q", got)
		}
	}
	again, err := LockFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestTheLockOfADirectoryCanBeTried(t *testing.T) {
	dir := t.TempDir()
	lock, err := TryLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := TryLock(dir); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Errorf("error %v for a lock that is held, want ErrLocked and %s", err, dir)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := TryLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if _, err := TryLock(filepath.Join(dir, "missing")); err == nil || errors.Is(err, ErrLocked) {
		t.Errorf("error %v for what does not exist", err)
	}
}

func TestALockThatCannotBeMadeIsNoErrLocked(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(file, "lock"), filepath.Dir(file)} {
		if lock, err := LockFile(path); err == nil || errors.Is(err, ErrLocked) {
			t.Errorf("LockFile(%s) = %v, %v", path, lock, err)
		}
	}
}

func TestKillGroupEndsTheLeaderAndItsChildren(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sleep 600 & echo $!; wait")
	NewGroup(cmd)
	child, err := strconv.Atoi(firstLine(t, cmd))
	if err != nil {
		t.Fatal(err)
	}
	if err := KillGroup(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the leader ended well")
	}
	gone(t, child)
	// A group that is gone is no error, however often.
	for range 2 {
		if err := KillGroup(cmd.Process.Pid); err != nil {
			t.Error(err)
		}
	}
}

func TestAChildDiesWithItsParent(t *testing.T) {
	if runtime.GOOS != "linux" {
		return // DieWithParent promises nothing elsewhere
	}
	parent := as("parent")
	child, err := strconv.Atoi(firstLine(t, parent))
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	gone(t, child)
}

func TestDieWithParentAndNewGroupGoTogether(t *testing.T) {
	cmd := exec.Command("true")
	NewGroup(cmd)
	release := DieWithParent(cmd)
	defer release()
	NewGroup(cmd)
	if !cmd.SysProcAttr.Setpgid {
		t.Error("the group was forgotten")
	}
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
}
