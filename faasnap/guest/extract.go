package guest

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os/exec"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// The header of a bzImage, from the boot protocol of Linux on x86 (2.08).
const (
	setupSectors  = 0x1f1
	headerMagic   = 0x202
	protocol      = 0x206
	payloadOffset = 0x248
	payloadLength = 0x24c
	headerEnd     = 0x250
	sectorBytes   = 512
	// maxKernelBytes bounds what a kernel unpacks to.
	maxKernelBytes = 512 << 20
)

// extractKernel returns the ELF file in a bzImage.
func extractKernel(ctx context.Context, image []byte) ([]byte, error) {
	if len(image) < headerEnd || string(image[headerMagic:headerMagic+4]) != "HdrS" {
		return nil, fmt.Errorf("%w: it has no header", errKernelFormat)
	}
	if v := binary.LittleEndian.Uint16(image[protocol:]); v < 0x208 {
		return nil, fmt.Errorf("%w: its boot protocol is %#x", errKernelFormat, v)
	}
	sectors := int64(image[setupSectors])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*sectorBytes + int64(binary.LittleEndian.Uint32(image[payloadOffset:]))
	end := start + int64(binary.LittleEndian.Uint32(image[payloadLength:]))
	if end > int64(len(image)) || end-start < 8 {
		return nil, fmt.Errorf("%w: its payload ends at %d of %d bytes", errKernelFormat, end, len(image))
	}
	// The build puts the unpacked size behind formats that do not tell it.
	payload, size := image[start:end-4], int(binary.LittleEndian.Uint32(image[end-4:]))
	kernel, err := decompress(ctx, image[start:end], payload, size)
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(kernel, []byte("\x7fELF")) {
		return nil, fmt.Errorf("%w: its payload is no ELF file", errKernelFormat)
	}
	return kernel, nil
}

// decompress unpacks a payload; short is the payload without its size at the
// end.
func decompress(ctx context.Context, whole, short []byte, size int) ([]byte, error) {
	switch {
	case bytes.HasPrefix(whole, []byte("\x7fELF")):
		return whole, nil
	case bytes.HasPrefix(whole, []byte{0x02, 0x21, 0x4c, 0x18}):
		return decompressLZ4(short, size)
	case bytes.HasPrefix(whole, []byte{0x1f, 0x8b}):
		r, err := gzip.NewReader(bytes.NewReader(whole))
		if err != nil {
			return nil, err
		}
		r.Multistream(false)
		return readAll(r)
	case bytes.HasPrefix(whole, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		r, err := zstd.NewReader(bytes.NewReader(short), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxKernelBytes))
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return readAll(r)
	case bytes.HasPrefix(whole, []byte("\xfd7zXZ\x00")):
		path, err := exec.LookPath("xz")
		if err != nil {
			return nil, &MissingToolError{Program: "xz", Package: "xz-utils"}
		}
		cmd := exec.CommandContext(ctx, path, "-dc", "--single-stream")
		cmd.Stdin = bytes.NewReader(short)
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("run xz: %w", err)
		}
		return out, nil
	}
	return nil, fmt.Errorf("%w: its payload begins with % x", errKernelFormat, whole[:8])
}

func readAll(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxKernelBytes+1))
	if err == nil && len(b) > maxKernelBytes {
		err = fmt.Errorf("%w: its payload unpacks to over %d bytes", errKernelFormat, maxKernelBytes)
	}
	return b, err
}

// decompressLZ4 unpacks LZ4's legacy format: blocks with their lengths.
func decompressLZ4(b []byte, size int) ([]byte, error) {
	if size > maxKernelBytes {
		return nil, fmt.Errorf("%w: its payload unpacks to %d bytes", errKernelFormat, size)
	}
	out := make([]byte, 0, size)
	for b = b[4:]; len(b) >= 4; {
		n := int64(binary.LittleEndian.Uint32(b))
		if n > int64(len(b))-4 {
			return nil, fmt.Errorf("%w: an LZ4 block of %d bytes in %d", errKernelFormat, n, len(b)-4)
		}
		unpacked, err := lz4.UncompressBlock(b[4:4+n], out[len(out):size])
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errKernelFormat, err)
		}
		out, b = out[:len(out)+unpacked], b[4+n:]
	}
	if len(out) != size {
		return nil, fmt.Errorf("%w: its payload unpacks to %d bytes, not %d", errKernelFormat, len(out), size)
	}
	return out, nil
}
