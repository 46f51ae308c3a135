package rtnl

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/volley-run/volley/internal/sys"
)

// AddTap makes a tap device in the calling thread's namespace, which stays until
// it is deleted, for whoever opens it: a virtual machine monitor. Its packets
// have the header of virtio. The error is ErrExists, wrapped, if there is a link
// of that name.
func AddTap(name string) error {
	err := sys.AddTap(name)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EBUSY):
		err = ErrExists
	default:
		err = meaning(err)
	}
	return fmt.Errorf("add tap %s: %w", name, err)
}
