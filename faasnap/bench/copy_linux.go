package bench

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
)

// copyDir copies a snapshot with the holes of its files, by coreutils.
func copyDir(ctx context.Context, from, to string) error {
	out, err := exec.CommandContext(ctx, "cp", "-a", "--sparse=always", "--reflink=never", "--", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cp: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
