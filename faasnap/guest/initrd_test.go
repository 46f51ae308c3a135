package guest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// kernelModule is an ELF file with what is read of a module.
func kernelModule(t *testing.T, info ...string) []byte {
	t.Helper()
	const headerBytes, sectionBytes = 64, 64
	names := "\x00.shstrtab\x00.modinfo\x00"
	data := strings.Join(info, "\x00") + "\x00"
	header := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Shoff: uint64(headerBytes + len(names) + len(data)), Ehsize: headerBytes, Shentsize: sectionBytes, Shnum: 3, Shstrndx: 1,
	}
	sections := []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_STRTAB), Off: headerBytes, Size: uint64(len(names))},
		{Name: 11, Type: uint32(elf.SHT_PROGBITS), Off: uint64(headerBytes + len(names)), Size: uint64(len(data))},
	}
	var b bytes.Buffer
	for _, part := range []any{header, []byte(names + data), sections} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// moduleDir has modules with their dependencies, as a kernel's package does.
func moduleDir(t *testing.T, depends map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, on := range depends {
		path := filepath.Join(dir, "kernel", name+".ko")
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, kernelModule(t, "license=GPL", "depends="+on), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestModulesComeAfterWhatTheyNeed(t *testing.T) {
	modules, err := findModules(moduleDir(t, map[string]string{
		"virtio_pci": "virtio_ring,virtio", "virtio_mmio": "virtio,virtio_ring", "virtio_blk": "virtio_ring,virtio",
		"virtio": "", "virtio_ring": "virtio", "drivers/net/virtio_net": "virtio,net_failover", "net-failover": "failover", "failover": "",
		"unrelated": "virtio_net",
	}))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range modules {
		line := m.name
		if !m.onAnyBus() {
			line += " " + strings.Join(m.on, " ")
		}
		got = append(got, line)
	}
	want := []string{"virtio", "virtio_ring", "virtio_pci pci", "virtio_mmio mmio", "virtio_blk 2", "failover 1", "net_failover 1", "virtio_net 1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestADirectoryWithoutModulesIsToldAtOnce(t *testing.T) {
	if _, err := findModules(t.TempDir()); err == nil {
		t.Error("it is taken")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "virtio_pci.ko"), []byte("no module"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := findModules(dir); err == nil || !strings.Contains(err.Error(), "virtio_pci.ko") {
		t.Errorf("a module that is none: %v", err)
	}
}

// entry is a file of a cpio archive.
type entry struct {
	name    string
	mode    uint64
	content []byte
}

// readArchive reads an archive as the kernel does.
func readArchive(t *testing.T, b []byte) []entry {
	t.Helper()
	var entries []entry
	for offset := 0; ; {
		header := b[offset:]
		if len(header) < 110 || string(header[:6]) != "070701" {
			t.Fatalf("no header at %d", offset)
		}
		field := func(i int) int {
			n, err := strconv.ParseUint(string(header[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
		mode, size, nameSize := field(1), field(6), field(11)
		name := string(b[offset+110 : offset+110+nameSize-1])
		start := (offset + 110 + nameSize + 3) &^ 3
		offset = (start + size + 3) &^ 3
		if name == "TRAILER!!!" {
			if offset != len(b) {
				t.Errorf("%d bytes after the end", len(b)-offset)
			}
			return entries
		}
		entries = append(entries, entry{name, uint64(mode), b[start : start+size]})
	}
}

func TestAnInitrdHasModulesTheirListAndInit(t *testing.T) {
	dir := moduleDir(t, map[string]string{"virtio_pci": "virtio", "virtio_mmio": "virtio", "virtio": "", "virtio_blk": "virtio"})
	modules, err := findModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "volley-init")
	if err := os.WriteFile(binary, []byte("the program"), 0o600); err != nil {
		t.Fatal(err)
	}
	var images [2][]byte
	for i := range images {
		path := filepath.Join(t.TempDir(), "initrd")
		if err := writeInitrd(path, binary, modules); err != nil {
			t.Fatal(err)
		}
		if images[i], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(images[0], images[1]) {
		t.Error("the same content gives different bytes")
	}
	var names []string
	for _, e := range readArchive(t, images[0]) {
		names = append(names, e.name)
		switch e.name {
		case "init":
			if string(e.content) != "the program" || e.mode != modeFile {
				t.Errorf("init: mode %o, %q", e.mode, e.content)
			}
		case "modules":
			want := "/lib/virtio.ko\n/lib/virtio_pci.ko pci\n/lib/virtio_mmio.ko mmio\n/lib/virtio_blk.ko 2\n"
			if diff := cmp.Diff(want, string(e.content)); diff != "" {
				t.Error(diff)
			}
		}
	}
	want := []string{"dev", "dev/console", "dev/null", "lib", "lib/virtio.ko", "lib/virtio_pci.ko", "lib/virtio_mmio.ko", "lib/virtio_blk.ko", "modules", "init"}
	if !slices.Equal(names, want) {
		t.Errorf("files %v, want %v", names, want)
	}
}

func TestModulesLoseTheirSignaturesOnly(t *testing.T) {
	trailer := append([]byte("signature\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x09"), signatureText...)
	for name, tc := range map[string]struct{ module, want string }{
		"signed":            {"content" + string(trailer), "content"},
		"not signed":        {"content", "content"},
		"a length too long": {string(trailer[5:]), string(trailer[5:])},
		"too short":         {signatureText, signatureText},
		"nothing":           {"", ""},
	} {
		if got := unsigned([]byte(tc.module)); string(got) != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}
