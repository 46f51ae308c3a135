package snapshot

import (
	"bytes"
	"context"
	"hash/crc32"
	"io"
	"os"

	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/pages"
)

// castagnoli is the table of CRC-32C. It is constant; processors have an
// instruction for it.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// eachSum calls f with the checksum of each chunk of a file, in order, until f
// returns false. Holes of guest memory are not read.
func eachSum(ctx context.Context, file *os.File, size int64, f func(chunk int, sum uint32) bool) error {
	data := []pages.Range{{Start: 0, End: int(size/pages.Size) + 1}}
	if size%pages.Size == 0 {
		var err error
		if data, err = mem.Data(file, size); err != nil {
			return err
		}
	}
	buf := make([]byte, min(size, ChunkSize))
	zero := crc32.Checksum(buf, castagnoli)
	for chunk := range int(chunks(size)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		start := int64(chunk) * ChunkSize
		b := buf[:min(size-start, ChunkSize)]
		for len(data) > 0 && int64(data[0].End)*pages.Size <= start {
			data = data[1:]
		}
		sum := zero
		if len(data) > 0 && int64(data[0].Start)*pages.Size < start+int64(len(b)) {
			if _, err := file.ReadAt(b, start); err != nil {
				if err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return err
			}
			sum = crc32.Checksum(b, castagnoli)
		} else if len(b) < len(buf) {
			sum = crc32.Checksum(bytes.Repeat([]byte{0}, len(b)), castagnoli)
		}
		if !f(chunk, sum) {
			return nil
		}
	}
	return nil
}
