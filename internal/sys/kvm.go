package sys

// CheckKVM returns an error unless this process can make virtual machines with
// KVM (Linux). That it can does not mean that their processors run: nested
// virtualization may be broken in ways that only running one shows.
func CheckKVM() error { return checkKVM() }
