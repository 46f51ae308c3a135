package firecracker

// NewWithoutKVM is New for a double, which needs no KVM.
func NewWithoutKVM(binary string) *Driver { return NewWithKVM(binary, nil) }

// NewWithKVM is New on a host whose KVM is as err says.
func NewWithKVM(binary string, err error) *Driver {
	d := New(binary)
	d.kvm = func() error { return err }
	return d
}
