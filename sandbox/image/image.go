// Package image makes OCI images ready to run: it resolves references, pulls
// from registries or reads archives, verifies, unpacks layers for overlayfs,
// and caches them.
package image

import "sync"

// Image is an unpacked image. It must not be changed, and stays whole until it
// is released.
type Image struct {
	// Key names the image's content; two images of one key are the same.
	Key string
	// Dir is the directory that Layers are in.
	Dir string
	// Layers are the unpacked layers from the topmost down, as paths seen from
	// Dir, in the form that overlayfs takes as lower directories.
	Layers []string
	Config RunConfig

	release func()
}

// Release says that the image is not needed any longer. It is idempotent and
// may be called concurrently.
func (i *Image) Release() { i.release() }

// newImage makes an Image that calls each function of release once when it is
// released.
func newImage(i Image, release []func()) *Image {
	i.release = sync.OnceFunc(func() {
		for _, f := range release {
			f()
		}
	})
	return &i
}

// RunConfig is what an image says about how to run it.
type RunConfig struct {
	EntryPoint []string `json:"entryPoint,omitempty"`
	Command    []string `json:"command,omitempty"`
	// Env is NAME=value.
	Env        []string `json:"env,omitempty"`
	WorkingDir string   `json:"workingDir,omitempty"`
	// User is as the image has it: a name or number, perhaps with a group after
	// a colon, or empty.
	User string `json:"user,omitempty"`
}
