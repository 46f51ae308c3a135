package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox/agent"
	"github.com/volley-run/volley/sandbox/image"
	"github.com/volley-run/volley/sandbox/runtimes"
)

// FunctionID is the user and group id that functions run as in a guest.
const FunctionID = 993

// rootVersion changes when what is put into roots does.
const rootVersion = "root 1"

// leftOut are the files of packages that no function needs. The table is
// constant.
var leftOut = []string{
	"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*",
	"/usr/share/linda/*", "/usr/share/bug/*", "/usr/share/menu/*", "/usr/share/groff/*",
}

// Runtime returns the path of a root file system with the language that a
// function's runtime needs, as for "python3.11", and further Debian packages.
// The version of the language is the Debian release's. It needs mmdebstrap and
// mke2fs, and user id 0. The error wraps a *function.Error if the runtime is
// unknown.
func (b *Builder) Runtime(ctx context.Context, runtime string, packages ...string) (string, error) {
	path, err := b.runtime(ctx, runtime, packages)
	if err != nil {
		return "", fmt.Errorf("make guest root for runtime %s: %w", runtime, err)
	}
	return path, nil
}

func (b *Builder) runtime(ctx context.Context, runtime string, packages []string) (string, error) {
	family, ok := function.RuntimeFamily(runtime)
	if !ok {
		return "", function.Errorf(function.InvalidParameter, "unknown runtime %q: use one of %s", runtime, strings.Join(function.Runtimes(), ", "))
	}
	packages = append([]string{"ca-certificates", "tzdata"}, packages...)
	switch family {
	case function.Python:
		packages = append(packages, "python3")
	case function.Node:
		packages = append(packages, "nodejs")
	}
	slices.Sort(packages)
	packages = slices.Compact(packages)
	clients, err := clientsSum()
	if err != nil {
		return "", err
	}
	key := newKey(rootVersion, b.suite(), strings.Join(packages, ","), strings.Join(leftOut, ","), clients)
	key.add(b.Mirrors...)
	made, err := b.get(ctx, key, b.Refresh, func(dir string) ([]string, error) {
		if err := needRoot("install packages"); err != nil {
			return nil, err
		}
		root := filepath.Join(dir, "root")
		args := []string{"--variant=essential", "--format=directory", "--quiet", "--include=" + strings.Join(packages, ",")}
		for _, pattern := range leftOut {
			args = append(args, "--dpkgopt=path-exclude="+pattern)
		}
		args = append(args, b.suite(), root)
		if err := run(ctx, "mmdebstrap", "mmdebstrap", append(args, b.Mirrors...)...); err != nil {
			return nil, err
		}
		return finishRoot(ctx, dir, root)
	})
	if err != nil {
		return "", err
	}
	return made[0], nil
}

// clientsSum is a hash of the runtime clients.
func clientsSum() (string, error) {
	dir, err := os.MkdirTemp("", "volley-runtimes-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	if err := runtimes.Write(dir); err != nil {
		return "", err
	}
	key := newKey()
	for _, name := range []string{runtimes.PythonFile, runtimes.NodeFile} {
		if err := key.file(filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	return key.String(), nil
}

// imageFile is the name of a file system in a store.
const imageFile = "ext4"

// finishRoot puts into a root what every guest needs and makes an image of it.
func finishRoot(ctx context.Context, dir, root string) ([]string, error) {
	if err := prepareRoot(root); err != nil {
		return nil, err
	}
	if err := makeExt4(ctx, filepath.Join(dir, imageFile), root); err != nil {
		return nil, err
	}
	return []string{imageFile}, nil
}

// prepareRoot makes the mount points, the runtime clients and the files of
// /etc that the network and accounts need.
func prepareRoot(root string) error {
	for _, name := range []string{"dev", "proc", "sys", "run", "tmp", "opt", agent.TaskRoot} {
		if err := mkdirIn(root, name); err != nil {
			return err
		}
	}
	if err := mkdirIn(root, agent.RuntimeDir); err != nil {
		return err
	}
	if err := runtimes.Write(filepath.Join(root, agent.RuntimeDir)); err != nil {
		return err
	}
	if err := mkdirIn(root, "etc"); err != nil {
		return err
	}
	etc, err := os.OpenRoot(filepath.Join(root, "etc"))
	if err != nil {
		return err
	}
	defer etc.Close()
	for name, text := range map[string]string{
		"hosts":       "127.0.0.1 localhost sandbox\n::1 localhost\n",
		"hostname":    "sandbox\n",
		"resolv.conf": "",
	} {
		// An image's may be links to elsewhere.
		if err := etc.RemoveAll(name); err != nil {
			return err
		}
		if err := etc.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return addAccount(etc)
}

// mkdirIn makes a directory in a root, and sees to it that it is none of
// somewhere else.
func mkdirIn(root, name string) error {
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	name = strings.TrimPrefix(name, "/")
	if err := r.MkdirAll(name, 0o755); err != nil {
		return fmt.Errorf("make %s in root: %w", name, err)
	}
	for dir := name; dir != "."; dir = filepath.Dir(dir) {
		info, err := r.Lstat(dir)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fmt.Errorf("make %s in root: /%s is a link", name, dir)
		}
	}
	return nil
}

// addAccount gives the user that functions run as a name.
func addAccount(etc *os.Root) error {
	for name, line := range map[string]string{
		"passwd": fmt.Sprintf("function:x:%d:%d:function:/tmp:/sbin/nologin\n", FunctionID, FunctionID),
		"group":  fmt.Sprintf("function:x:%d:\n", FunctionID),
	} {
		old, err := etc.ReadFile(name)
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		if strings.Contains("\n"+string(old), "\nfunction:") {
			continue
		}
		if len(old) > 0 && old[len(old)-1] != '\n' {
			old = append(old, '\n')
		}
		if err := etc.WriteFile(name, append(old, line...), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Image returns the path of a root file system with what a container image
// has, and whom its function runs as: as in a container, the image's user, but
// not root. It needs mke2fs and user id 0. The error wraps a *function.Error if
// the image does not know its user.
func (b *Builder) Image(ctx context.Context, img *image.Image) (root string, user image.User, err error) {
	made, err := b.image(ctx, img)
	if err == nil {
		files := map[string]string{"passwd": made[1], "group": made[2]}
		etc := func(name string) (io.ReadCloser, error) { return os.Open(files[name]) }
		user, err = img.Config.FindUser(etc, image.User{UID: FunctionID, GID: FunctionID})
	}
	if err != nil {
		return "", image.User{}, fmt.Errorf("make guest root of image %s: %w", img.Key, err)
	}
	return made[0], user, nil
}

// image returns the root and the files of its accounts, users first.
func (b *Builder) image(ctx context.Context, img *image.Image) ([]string, error) {
	clients, err := clientsSum()
	if err != nil {
		return nil, err
	}
	return b.get(ctx, newKey(rootVersion, "image and accounts", img.Key, clients), false, func(dir string) ([]string, error) {
		if err := needRoot("copy files"); err != nil {
			return nil, err
		}
		root := filepath.Join(dir, "root")
		if err := copyImage(ctx, img, filepath.Join(dir, "layers"), root); err != nil {
			return nil, err
		}
		made, err := finishRoot(ctx, dir, root)
		if err != nil {
			return nil, err
		}
		accounts, err := copyAccounts(root, dir)
		return append(made, accounts...), err
	})
}

// copyAccounts copies the files of a root's users and groups to dir.
func copyAccounts(root, dir string) ([]string, error) {
	in, err := os.OpenRoot(root) // an image's may be links to elsewhere
	if err != nil {
		return nil, err
	}
	defer in.Close()
	names := []string{"passwd", "group"}
	for _, name := range names {
		text, err := in.ReadFile("etc/" + name)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// copyImage copies the files of an image to root. mount is where its layers can
// be put together.
func copyImage(ctx context.Context, img *image.Image, mount, root string) (err error) {
	source := ""
	switch len(img.Layers) {
	case 0:
		return errors.New("the image has no layers")
	case 1:
		source = filepath.Join(img.Dir, img.Layers[0])
	default:
		if err := os.Mkdir(mount, 0o755); err != nil {
			return err
		}
		if err := sys.MountOverlay(img.Dir, img.Layers, mount); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, sys.Unmount(mount)) }()
		source = mount
	}
	return run(ctx, "coreutils", "cp", "-a", "--", source, root)
}

// Code returns the path of a file system with the files of dir, which may be
// of anybody; functions can read them all as if they were root's.
func (b *Builder) Code(ctx context.Context, dir string) (string, error) {
	made, err := b.code(ctx, dir)
	if err != nil {
		return "", fmt.Errorf("make drive of code %s: %w", dir, err)
	}
	return made[0], nil
}

func (b *Builder) code(ctx context.Context, dir string) ([]string, error) {
	key := newKey("code 1")
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		key.add(rel, info.Mode().String())
		switch info.Mode().Type() {
		case 0:
			return key.file(path)
		case fs.ModeSymlink:
			to, err := os.Readlink(path)
			key.add(to)
			return err
		}
		return ctx.Err()
	})
	if err != nil {
		return nil, err
	}
	return b.get(ctx, key, false, func(tmp string) ([]string, error) {
		return []string{imageFile}, makeExt4(ctx, filepath.Join(tmp, imageFile), dir)
	})
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
