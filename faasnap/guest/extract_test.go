package guest

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"
)

// bzImage wraps a payload in as much of a bzImage as is read of one.
func bzImage(payload []byte) []byte {
	const sectors = 2
	b := make([]byte, (sectors+1)*sectorBytes)
	b[setupSectors] = sectors
	copy(b[headerMagic:], "HdrS")
	binary.LittleEndian.PutUint16(b[protocol:], 0x20f)
	binary.LittleEndian.PutUint32(b[payloadOffset:], 7)
	binary.LittleEndian.PutUint32(b[payloadLength:], uint32(len(payload)))
	b = append(b, "before:"...)
	return append(append(b, payload...), "after"...)
}

func withSize(b []byte, size int) []byte { return binary.LittleEndian.AppendUint32(b, uint32(size)) }

// lz4Block packs b as literals with copies where it repeats itself at once.
func lz4Block(b []byte) []byte {
	var out []byte
	length := func(n int) {
		for n -= 15; n >= 255; n -= 255 {
			out = append(out, 255)
		}
		out = append(out, byte(n))
	}
	start := 0
	emit := func(end, offset, n int) {
		literals := b[start:end]
		token := min(len(literals), 15) << 4
		if n > 0 {
			token |= min(n-4, 15)
		}
		out = append(out, byte(token))
		if len(literals) >= 15 {
			length(len(literals))
		}
		out = append(out, literals...)
		if n == 0 {
			return
		}
		out = binary.LittleEndian.AppendUint16(out, uint16(offset))
		if n-4 >= 15 {
			length(n - 4)
		}
		start = end + n
	}
	for i := 1; i < len(b); i++ {
		for _, offset := range []int{1, 2, 7} {
			n := 0
			for i >= offset && i+n < len(b) && b[i+n] == b[i+n-offset] {
				n++
			}
			if n >= 4 && i >= start {
				emit(i, offset, n)
				i += n - 1
				break
			}
		}
	}
	emit(len(b), 0, 0)
	return out
}

func lz4Legacy(b []byte, blockSize int) []byte {
	out := []byte{0x02, 0x21, 0x4c, 0x18}
	for len(b) > 0 {
		n := min(len(b), blockSize)
		block := lz4Block(b[:n])
		out = append(binary.LittleEndian.AppendUint32(out, uint32(len(block))), block...)
		b = b[n:]
	}
	return out
}

func TestKernelsAreExtractedFromEveryFormat(t *testing.T) {
	kernel := append([]byte("\x7fELF"), bytes.Repeat([]byte("kernel "), 10_000)...)
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	if _, err := w.Write(kernel); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	for name, payload := range map[string][]byte{
		"not packed": kernel,
		"gzip":       withSize(zipped.Bytes(), len(kernel)),
		"zstd":       withSize(enc.EncodeAll(kernel, nil), len(kernel)),
		"lz4":        withSize(lz4Legacy(kernel, 8<<10), len(kernel)),
	} {
		got, err := extractKernel(t.Context(), bzImage(payload))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !bytes.Equal(got, kernel) {
			t.Errorf("%s: %d bytes, want %d", name, len(got), len(kernel))
		}
	}
}

func TestWhatIsNoKernelIsRefused(t *testing.T) {
	good := bzImage([]byte("\x7fELF and more"))
	old := bytes.Clone(good)
	binary.LittleEndian.PutUint16(old[protocol:], 0x207)
	long := bytes.Clone(good)
	binary.LittleEndian.PutUint32(long[payloadLength:], 1<<31)
	for name, image := range map[string][]byte{
		"empty":             nil,
		"no header":         make([]byte, 4096),
		"an old protocol":   old,
		"cut short":         good[:len(good)-10],
		"a long payload":    long,
		"an unknown format": bzImage([]byte("something else")),
		"no ELF inside":     bzImage(withSize(lz4Legacy([]byte("no ELF file at all"), 100), 18)),
		"a wrong size":      bzImage(withSize(lz4Legacy([]byte("\x7fELF"), 100), 5)),
		"a huge size":       bzImage(withSize(lz4Legacy([]byte("\x7fELF"), 100), maxKernelBytes+1)),
		"a block cut short": bzImage(withSize(lz4Legacy([]byte("\x7fELF and more"), 100)[:12], 13)),
	} {
		if _, err := extractKernel(t.Context(), image); !errors.Is(err, errKernelFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLZ4BlocksComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOf(rapid.SampledFrom([]byte("ab"))).Draw(t, "content")
		blockSize := rapid.IntRange(1, 50).Draw(t, "block")
		got, err := decompressLZ4(lz4Legacy(want, blockSize), len(want))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%q, error %v, want %q", got, err, want)
		}
	})
}

func FuzzDecompressLZ4(f *testing.F) {
	f.Add(lz4Legacy(bytes.Repeat([]byte("abc"), 100), 64), 300)
	f.Add([]byte{2, 0x21, 0x4c, 0x18, 4, 0, 0, 0, 0x1f, 'a', 1, 0}, 20)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		if len(b) < 4 || size < 0 || size > 1<<20 {
			return
		}
		out, err := decompressLZ4(b, size)
		if err == nil && len(out) != size {
			t.Errorf("%d bytes, want %d", len(out), size)
		}
		if err != nil && !errors.Is(err, errKernelFormat) {
			t.Error(err)
		}
	})
}
