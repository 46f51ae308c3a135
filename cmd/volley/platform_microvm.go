package main

import (
	"context"
	"path/filepath"

	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/microvm"
)

// microVMProgram is what the driver microvm needs.
const microVMProgram = "qemu-system-x86_64"

// openMicroVM makes the driver of virtual machines, with FaaSnap's service under
// it.
func (n *invokerNode) openMicroVM(ctx context.Context, o invokerOptions, dir string, packages sandbox.Unpacker, images microvm.Images, s services) error {
	vms := vmmOptions{init: o.init}
	service, _, err := vms.service(ctx, filepath.Join(dir, driverMicroVM), needAll)
	if err != nil {
		return err
	}
	n.add(service.Close)
	networks, err := openJobNetworks(ctx, o.netState, dir, true)
	if err != nil {
		return err
	}
	n.add(networks.Close)
	policy := microvm.DefaultPolicy()
	policy.MaxBytes, policy.MaxStandby = int64(o.snapshots)<<20, o.standby
	driver, err := microvm.New(microvm.Config{Service: service, Mode: vms.mode(), Unpacker: packages, Images: images, Networks: networks, Policy: policy, Log: s.log})
	if err != nil {
		return err
	}
	n.add(driver.Close)
	n.driver = driver
	// It looks for QEMU and tries KVM now rather than at the first invocation.
	vmm, err := service.Version(ctx)
	if err != nil {
		return withStatus(exitPlatform, err)
	}
	s.log.Info("functions run in virtual machines", "vmm", vmm)
	return nil
}
