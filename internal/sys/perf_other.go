//go:build !linux

package sys

import (
	"errors"
	"os"
)

func faultEvents() ([]*os.File, error) { return nil, errors.ErrUnsupported }
