package microvm

// Tidy does what is done from time to time.
func (d *Driver) Tidy() { d.tidy() }
