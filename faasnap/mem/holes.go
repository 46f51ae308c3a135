package mem

import (
	"bytes"
	"os"
)

// zeroFill writes zeros over what is not zero, where there can be no hole.
func zeroFill(f *os.File, offset, length int64) error {
	buf, zero := make([]byte, scanBuffer), make([]byte, scanBuffer)
	for length > 0 {
		b := buf[:min(int64(len(buf)), length)]
		if _, err := f.ReadAt(b, offset); err != nil {
			return err
		}
		if !bytes.Equal(b, zero[:len(b)]) {
			if _, err := f.WriteAt(zero[:len(b)], offset); err != nil {
				return err
			}
		}
		offset += int64(len(b))
		length -= int64(len(b))
	}
	return nil
}
