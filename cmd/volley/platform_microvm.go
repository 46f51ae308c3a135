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
func (n *invokerNode) openMicroVM(ctx context.Context, o invokerOptions, dir string, packages sandbox.Unpacker, s services) error {
	vms := vmmOptions{init: o.init}
	service, _, err := vms.service(ctx, filepath.Join(dir, driverMicroVM), needAll)
	if err != nil {
		return err
	}
	n.add(service.Close)
	n.driver = microvm.New(microvm.Config{Service: service, Unpacker: packages, Log: s.log})
	n.add(n.driver.Close)
	return nil
}
