package qemu

// NewWithKVM is New on a host whose KVM is another file.
func NewWithKVM(cfg Config, device string) *Driver {
	d := New(cfg)
	d.kvm = device
	return d
}

// ShimSource is what BuildShim compiles.
func ShimSource() []byte { return shimSource }
