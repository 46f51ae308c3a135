package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/volley-run/volley/internal/sys"
)

// below reports whether path is dir or in it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// unmountBelow unmounts all that is mounted on dir and below.
func unmountBelow(dir string) error {
	mounts, err := sys.Mounts()
	if err != nil {
		return err
	}
	// The last mount made is the first to go.
	for _, m := range slices.Backward(mounts) {
		if below(m.Point, dir) {
			if err := sys.Unmount(m.Point); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeTree removes a directory and all in it, but first takes away what is
// mounted there, and removes nothing while something still is: a mount may
// lead to the host's own files.
func removeTree(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := unmountBelow(dir); err != nil {
		return err
	}
	mounts, err := sys.Mounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if below(m.Point, dir) {
			return fmt.Errorf("remove %s: %s is still mounted", dir, m.Point)
		}
	}
	return os.RemoveAll(dir)
}
