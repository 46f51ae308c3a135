//go:build unix

package bundle

import (
	"errors"
	"syscall"
)

// isNameError reports whether the file system refused a name.
func isNameError(err error) bool {
	return errors.Is(err, syscall.ENAMETOOLONG) || errors.Is(err, syscall.EILSEQ)
}
