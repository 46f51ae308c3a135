package guest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// wantedModules are the kernel modules that guests need, in the order in which
// they are loaded, with the devices that they are for: see volley-init's list
// of modules. The table is constant.
var wantedModules = []struct {
	name string
	// on is a bus ("pci", "mmio") or the number of a kind of virtio device.
	on string
}{
	{"virtio_pci", "pci"},
	{"virtio_mmio", "mmio"},
	{"virtio_blk", "2"},
	{"virtio_console", "3"},
	{"virtio_net", "1"},
	{"vmw_vsock_virtio_transport", "13"}, // in hexadecimal
}

// module is a kernel module to load.
type module struct {
	name, path string
	// on are the devices that it is for, the ones that need it included.
	on []string
}

// findModules returns the wanted modules below a directory of modules, each
// after those that it depends on. What is not there as a module is taken to be
// built into the kernel.
func findModules(dir string) ([]module, error) {
	paths := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(d.Name(), ".ko"); err == nil && ok {
			paths[moduleName(name)] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find kernel modules: %w", err)
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("find kernel modules: %s has no *.ko files", dir)
	}
	var list []module
	// add puts a module and what it depends on at the end of the list.
	var add func(name, on string) error
	add = func(name, on string) error {
		path, ok := paths[name]
		if !ok {
			return nil
		}
		depends, err := dependencies(path)
		if err != nil {
			return fmt.Errorf("read kernel module %s: %w", path, err)
		}
		for _, d := range depends {
			if err := add(d, on); err != nil {
				return err
			}
		}
		i := slices.IndexFunc(list, func(m module) bool { return m.name == name })
		if i < 0 {
			list = append(list, module{name: name, path: path})
			i = len(list) - 1
		}
		if !slices.Contains(list[i].on, on) {
			list[i].on = append(list[i].on, on)
		}
		return nil
	}
	for _, w := range wantedModules {
		if err := add(w.name, w.on); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// moduleName is a module's name as modules name each other.
func moduleName(file string) string { return strings.ReplaceAll(file, "-", "_") }

// dependencies returns the names of the modules that a module says it needs.
// They cannot go in circles, since depmod would refuse the kernel.
func dependencies(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("%s has no section .modinfo", filepath.Base(path))
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	var names []string
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := bytes.CutPrefix(entry, []byte("depends=")); ok {
			for name := range strings.SplitSeq(string(list), ",") {
				if name != "" {
					names = append(names, moduleName(name))
				}
			}
		}
	}
	return names, nil
}

// The end of a signed module (include/linux/module_signature.h): the signature,
// 12 bytes of which the last four are its length, and a text.
const (
	signatureText  = "~Module signature appended~\n"
	signatureBytes = 12
)

// unsigned returns a module without its signature. Checking one takes longer
// than all else about loading a module, and proves nothing here: who could
// change the initrd could change the kernel.
func unsigned(module []byte) []byte {
	rest, ok := bytes.CutSuffix(module, []byte(signatureText))
	if !ok || len(rest) < signatureBytes {
		return module
	}
	length := int64(binary.BigEndian.Uint32(rest[len(rest)-4:]))
	end := int64(len(rest)) - signatureBytes - length
	if end < 0 {
		return module
	}
	return rest[:end]
}

// onAnyBus says whether a module is for more than one bus, and so for all
// machines.
func (m module) onAnyBus() bool { return slices.Contains(m.on, "pci") && slices.Contains(m.on, "mmio") }

// writeInitrd writes an initrd with volley-init and modules.
func writeInitrd(path, initBinary string, modules []module) (err error) {
	binary, err := os.ReadFile(initBinary)
	if err != nil {
		return fmt.Errorf("write initrd: %w", err)
	}
	out, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write initrd: %w", err)
	}
	a := &archive{w: out}
	a.dir("dev")
	// The kernel opens the console before process 1 can mount anything, and Go
	// programs want to have /dev/null.
	a.device("dev/console", 5, 1)
	a.device("dev/null", 1, 3)
	a.dir("lib")
	var list strings.Builder
	for _, m := range modules {
		content, err := os.ReadFile(m.path)
		if err != nil {
			return fmt.Errorf("write initrd: %w", err)
		}
		name := "lib/" + m.name + ".ko"
		a.file(name, unsigned(content))
		list.WriteString("/" + name)
		if !m.onAnyBus() {
			list.WriteString(" " + strings.Join(m.on, " "))
		}
		list.WriteByte('\n')
	}
	a.file("modules", []byte(list.String()))
	a.file("init", binary)
	err = a.close()
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("write initrd: %w", err)
	}
	return nil
}
