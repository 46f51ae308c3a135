package qemu_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/volley-run/volley/faasnap/vmm"
	"github.com/volley-run/volley/faasnap/vmm/qemu"
	"github.com/volley-run/volley/faasnap/vmm/vmmtest"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/internal/testenv"
)

// parentEnv makes the test program a process that boots a guest, says which
// process QEMU is, and waits to be killed.
const parentEnv = "VOLLEY_TEST_QEMU_PARENT"

// parentJob is what that process boots.
type parentJob struct {
	Shim string
	Boot vmm.Boot
}

func TestMain(m *testing.M) {
	if text := os.Getenv(parentEnv); text != "" {
		fmt.Fprintln(os.Stderr, "parent:", runParent(text))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

func runParent(text string) error {
	var job parentJob
	if err := json.Unmarshal([]byte(text), &job); err != nil {
		return err
	}
	vm, err := qemu.New(qemu.Config{Accel: qemu.TCG, Shim: job.Shim}).Boot(context.Background(), job.Boot)
	if err != nil {
		return err
	}
	fmt.Println(vm.PID())
	<-vm.Done()
	return errors.New("QEMU has ended")
}

// bootGuest boots a guest that is closed with the test.
func bootGuest(t *testing.T, d *qemu.Driver, b vmm.Boot) vmm.VM {
	t.Helper()
	b.Memory, b.Dir = sparse(t, b.MemoryBytes), t.TempDir()
	vm, err := d.Boot(t.Context(), b)
	return started(t, vm, err)
}

func started(t *testing.T, vm vmm.VM, err error) vmm.VM {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	return vm
}

// ask asks the guest of package vmmtest, which answers once it has booted.
func ask(t *testing.T, vm vmm.VM, request string) string {
	t.Helper()
	answer, err := vmmtest.AskLine(vm.Agent(), request)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(answer)
}

func TestQEMUEndsWithItsParent(t *testing.T) {
	testenv.Need(t, testenv.QEMU, testenv.CC)
	b := newGuest(t)
	b.Memory, b.Dir = sparse(t, b.MemoryBytes), t.TempDir()
	shim, err := qemu.BuildShim(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	job, err := json.Marshal(parentJob{shim, b})
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), parentEnv+"="+string(job))
	parent.Stderr = os.Stderr
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, readErr := bufio.NewReader(out).ReadString('\n')
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	var process *sys.Process
	if err == nil {
		process, err = sys.OpenProcess(pid)
	}
	killErr := parent.Process.Kill()
	_ = parent.Wait() // it was killed
	if err := errors.Join(readErr, err, killErr); err != nil {
		t.Fatal(err)
	}
	defer process.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := process.Wait(ctx); err != nil {
		t.Errorf("QEMU lives on: %v", errors.Join(err, process.Kill()))
	}
}

func TestQEMUHoldsNoPrivileges(t *testing.T) {
	d := newDriver(t)
	vm := bootGuest(t, d, newGuest(t))
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", vm.PID()))
	if err != nil {
		t.Fatal(err)
	}
	wants := []string{`Seccomp:\t2`, `NoNewPrivs:\t1`, `CapEff:\t0+`, `CapPrm:\t0+`}
	if os.Geteuid() == 0 {
		wants = append(wants, `Uid:(\t65534){4}`, `Gid:(\t65534){4}`, `Groups:\t ?`)
	}
	for _, want := range wants {
		if !regexp.MustCompile(`(?m)^` + want + `$`).Match(status) {
			t.Errorf("the status of QEMU has not %q:\n%s", want, status)
		}
	}
	if got := ask(t, vm, "echo on"); got != "on" {
		t.Errorf("the guest answers %q", got)
	}
}

func TestAGuestEnds(t *testing.T) {
	d := newDriver(t)
	b := newGuest(t)
	t.Run("by itself", func(t *testing.T) {
		vm := bootGuest(t, d, b)
		if _, err := io.WriteString(vm.Agent(), "off\n"); err != nil {
			t.Fatal(err)
		}
		<-vm.Done()
		if err := vm.Err(); err != nil {
			t.Errorf("error %v; want none", err)
		}
		if err := vm.Resume(t.Context()); err == nil {
			t.Error("a guest that has ended can be resumed")
		}
	})
	t.Run("by a signal to QEMU", func(t *testing.T) {
		vm := bootGuest(t, d, b)
		process, err := sys.OpenProcess(vm.PID())
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(process.Kill(), process.Close()); err != nil {
			t.Fatal(err)
		}
		<-vm.Done()
		if err := vm.Err(); err == nil || !strings.Contains(err.Error(), "QEMU ended: signal: killed") {
			t.Errorf("error %v; want that QEMU was killed", err)
		}
	})
}

func TestAGuestHasItsNetworkDevice(t *testing.T) {
	testenv.Need(t, testenv.NetAdmin)
	d, b := newDriver(t), newGuest(t)
	namespace := testenv.AnyIPNamespace(t, "qemu")
	for _, tap := range []string{"tap0", "tap1"} {
		add := exec.Command("nsenter", "--net="+namespace, "sh", "-ec", "ip tuntap add "+tap+" mode tap vnet_hdr; ip link set "+tap+" up")
		if out, err := add.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	drive := sparse(t, 1<<20)
	b.Drives = []vmm.Drive{{Path: drive, ReadOnly: true}}
	b.Network = &vmm.Network{Namespace: namespace, Tap: "tap0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	vm := bootGuest(t, d, b)
	look := func(vm vmm.VM) {
		t.Helper()
		for dir, want := range map[string]string{"/sys/class/net": "eth0", "/sys/class/block": "vda"} {
			if got := ask(t, vm, "list "+dir); !strings.Contains(" "+got+" ", " "+want+" ") {
				t.Errorf("the guest has %s in %s; want %s", got, dir, want)
			}
		}
	}
	look(vm)
	dir := t.TempDir()
	f := vmm.SaveFiles{State: filepath.Join(dir, "state"), Memory: filepath.Join(dir, "memory")}
	if err := errors.Join(vm.Pause(t.Context()), vm.Save(t.Context(), f), vm.Close()); err != nil {
		t.Fatal(err)
	}
	restore := func(n *vmm.Network) (vmm.VM, error) {
		m := b.Machine
		m.Network = n
		return d.Restore(t.Context(), vmm.Restore{Machine: m, State: f.State, Memory: vmm.Memory{File: f.Memory}, Dir: t.TempDir()})
	}
	for _, tap := range []string{"tap0", "tap1"} {
		vm, err := restore(&vmm.Network{Namespace: namespace, Tap: tap, MAC: b.Network.MAC})
		look(started(t, vm, err))
	}
	for _, n := range []*vmm.Network{nil, {Namespace: namespace, Tap: "tap2", MAC: b.Network.MAC}} {
		if vm, err := restore(n); err == nil {
			t.Error(errors.Join(fmt.Errorf("restored with %+v", n), vm.Close()))
		}
	}
}
