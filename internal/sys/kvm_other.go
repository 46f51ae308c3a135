//go:build !linux

package sys

import "errors"

func checkKVM() error { return errors.New("KVM needs Linux") }
