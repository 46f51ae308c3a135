package oci

import (
	"fmt"
	"io"
	"os"

	"github.com/volley-run/volley/sandbox/agent/frame"
	"github.com/volley-run/volley/sandbox/image"
)

// imageUser returns whom the function of an image runs as whose root file system
// is at root.
func imageUser(root string, config image.RunConfig, fallback frame.Credential) (frame.Credential, error) {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return frame.Credential{}, fmt.Errorf("find user of image: %w", err)
	}
	defer dir.Close()
	user, err := config.FindUser(func(name string) (io.ReadCloser, error) { return dir.Open("etc/" + name) }, image.User(fallback))
	return frame.Credential(user), err
}
