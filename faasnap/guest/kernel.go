package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// kernelPackage is the package that depends on the newest kernel for guests.
const kernelPackage = "linux-image-cloud-amd64"

// Boot options of the kernel; how they were chosen is in docs/guests.md.
const (
	// CommandLine is the kernel's command line for every machine.
	CommandLine = "quiet panic=-1 volley_init=vm no_timer_check tsc=reliable cryptomgr.notests psi=0 nowatchdog apparmor=0 audit=0 init_on_free=1 GODEBUG=asyncpreemptoff=1"
	// ResetCommandLine is added for machines that end by a restart.
	ResetCommandLine = "reboot=k volley_end=reset"
)

// Kernel is a kernel with what it needs to start volley-init.
type Kernel struct {
	// Image is a bzImage, ELF the same kernel as a plain ELF file.
	Image, ELF string
	// Initrd has volley-init and the kernel's modules.
	Initrd string
}

// The names of the files of a kernel in a store.
const (
	kernelFile  = "vmlinuz"
	elfFile     = "vmlinux"
	packageFile = "kernel.deb"
	initrdFile  = "initrd"
)

// Kernel returns Debian's kernel for virtual machines, and an initrd for it.
// It needs mmdebstrap and dpkg-deb.
func (b *Builder) Kernel(ctx context.Context) (Kernel, error) {
	k, err := b.kernel(ctx)
	if err != nil {
		return Kernel{}, fmt.Errorf("make guest kernel: %w", err)
	}
	return k, nil
}

func (b *Builder) kernel(ctx context.Context) (Kernel, error) {
	made, err := b.get(ctx, newKey(append([]string{"kernel 1", kernelPackage, b.suite()}, b.Mirrors...)...), b.Refresh, func(dir string) ([]string, error) {
		return b.makeKernel(ctx, dir)
	})
	if err != nil {
		return Kernel{}, err
	}
	if len(made) != 3 {
		return Kernel{}, fmt.Errorf("the store has %d files of it, not 3", len(made))
	}
	kernel := Kernel{Image: made[0], ELF: made[1]}
	debian := made[2]
	key := newKey("initrd 2", filepath.Base(debian), fmt.Sprint(wantedModules))
	if err := key.file(b.Init); err != nil {
		return Kernel{}, fmt.Errorf("read volley-init: %w", err)
	}
	made, err = b.get(ctx, key, false, func(dir string) ([]string, error) {
		unpacked := filepath.Join(dir, "package")
		if err := run(ctx, "dpkg", "dpkg-deb", "-x", debian, unpacked); err != nil {
			return nil, err
		}
		modules, err := findModules(filepath.Join(unpacked, "lib", "modules"))
		if err != nil {
			return nil, err
		}
		return []string{initrdFile}, writeInitrd(filepath.Join(dir, initrdFile), b.Init, modules)
	})
	if err != nil {
		return Kernel{}, err
	}
	kernel.Initrd = made[0]
	return kernel, nil
}

// downloadScript fetches the package that kernelPackage depends on with the apt
// that mmdebstrap has set up, whatever that of the host is like.
const downloadScript = `set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
cd "$VOLLEY_DOWNLOAD"
package=$(apt-cache depends --important ` + kernelPackage + ` | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
test -n "$package"
apt-get download -q "$package"
mv ./*.deb ` + packageFile + `
`

func (b *Builder) makeKernel(ctx context.Context, dir string) ([]string, error) {
	script := filepath.Join(dir, "download.sh")
	text := "VOLLEY_DOWNLOAD=" + shellQuote(dir) + "\n" + downloadScript
	if err := os.WriteFile(script, []byte(text), 0o644); err != nil {
		return nil, err
	}
	args := []string{"--variant=custom", "--format=null", "--quiet", "--customize-hook=sh " + shellQuote(script), b.suite(), os.DevNull}
	if err := run(ctx, "mmdebstrap", "mmdebstrap", append(args, b.Mirrors...)...); err != nil {
		return nil, err
	}
	unpacked := filepath.Join(dir, "package")
	if err := run(ctx, "dpkg", "dpkg-deb", "-x", filepath.Join(dir, packageFile), unpacked); err != nil {
		return nil, err
	}
	images, err := filepath.Glob(filepath.Join(unpacked, "boot", "vmlinuz-*"))
	if err != nil {
		return nil, err
	}
	if len(images) != 1 {
		return nil, fmt.Errorf("the kernel's package has %d kernels in boot/, not one", len(images))
	}
	if err := os.Rename(images[0], filepath.Join(dir, kernelFile)); err != nil {
		return nil, err
	}
	if err := writeELF(ctx, filepath.Join(dir, elfFile), filepath.Join(dir, kernelFile)); err != nil {
		return nil, err
	}
	return []string{kernelFile, elfFile, packageFile}, nil
}

// writeELF extracts a kernel from its bzImage.
func writeELF(ctx context.Context, path, image string) error {
	content, err := os.ReadFile(image)
	if err != nil {
		return err
	}
	kernel, err := extractKernel(ctx, content)
	if err != nil {
		return fmt.Errorf("extract kernel: %w", err)
	}
	return os.WriteFile(path, kernel, 0o644)
}

// errKernelFormat says that a file is no kernel that is understood here.
var errKernelFormat = errors.New("not a Linux kernel of a known format")
