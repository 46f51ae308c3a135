package sys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Of linux/kvm.h.
const (
	kvmGetAPIVersion = 0xae00
	kvmCreateVM      = 0xae01
	kvmAPIVersion    = 12
)

func checkKVM() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open KVM: %w", err)
	}
	defer f.Close()
	version, err := unix.IoctlRetInt(int(f.Fd()), kvmGetAPIVersion)
	if err != nil {
		return fmt.Errorf("ask KVM for its version: %w", err)
	}
	if version != kvmAPIVersion {
		return fmt.Errorf("KVM has version %d: want %d", version, kvmAPIVersion)
	}
	vm, err := unix.IoctlRetInt(int(f.Fd()), kvmCreateVM)
	if err != nil {
		return fmt.Errorf("make a KVM virtual machine: %w", err)
	}
	return unix.Close(vm)
}
