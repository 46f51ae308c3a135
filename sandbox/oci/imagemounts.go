package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox/image"
)

// imageMounts keeps the root file systems of images: one mount for all
// containers of an image, since they cannot change it. It may be used
// concurrently.
type imageMounts struct {
	// top is the directory of what Volley lays on top of every image, dir that
	// of the mount points.
	top, dir string

	mu     sync.Mutex
	mounts map[string]*imageMount
}

// imageMount is a mounted image.
type imageMount struct {
	*image.Image
	// root is the mount point.
	root string
	refs int
}

// mount returns the mounted image of a function. The caller calls release
// once.
func (m *imageMounts) mount(ctx context.Context, images Images, f *function.Function) (mounted *imageMount, release func(context.Context) error, err error) {
	img, err := images.Open(ctx, f)
	if err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	mounted, ok := m.mounts[img.Key]
	if ok {
		img.Release() // the mount's own use keeps it
	} else {
		if mounted, err = m.mountNew(img); err != nil {
			img.Release()
			return nil, nil, err
		}
		m.mounts[img.Key] = mounted
	}
	mounted.refs++
	return mounted, func(context.Context) error { return m.release(mounted) }, nil
}

func (m *imageMounts) mountNew(img *image.Image) (*imageMount, error) {
	root := filepath.Join(m.dir, img.Key)
	if err := os.Mkdir(root, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("mount image: %w", err)
	}
	if err := sys.MountOverlay(img.Dir, append([]string{m.top}, img.Layers...), root); err != nil {
		return nil, errors.Join(fmt.Errorf("mount image: %w", err), os.Remove(root))
	}
	return &imageMount{Image: img, root: root}, nil
}

func (m *imageMounts) release(mounted *imageMount) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if mounted.refs--; mounted.refs > 0 {
		return nil
	}
	delete(m.mounts, mounted.Key)
	defer mounted.Release()
	if err := errors.Join(sys.Unmount(mounted.root), os.Remove(mounted.root)); err != nil {
		return fmt.Errorf("unmount image: %w", err)
	}
	return nil
}
