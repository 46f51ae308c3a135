//go:build !linux

package sys

import "errors"

func exchange(_, _ string) error { return errors.ErrUnsupported }
