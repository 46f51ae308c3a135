//go:build !linux

package mem

import (
	"errors"
	"os"
)

func mapCached(*os.File, int64) ([]byte, error) { return nil, errors.ErrUnsupported }

func unmapCached([]byte) error { return errors.ErrUnsupported }

func dropCached(*os.File) error { return errors.ErrUnsupported }

func mincore(_, _ []byte) error { return errors.ErrUnsupported }
