// Package tail keeps the end of what a process writes, for errors to quote.
package tail

import (
	"bytes"
	"sync"
)

// keptBytes is how much a Buffer keeps.
const keptBytes = 4 << 10

// Buffer is an io.Writer that keeps the last 4 KiB of what is written to it. The
// zero value is empty. It may be used concurrently.
type Buffer struct {
	mu sync.Mutex
	b  []byte
}

// Write implements io.Writer. It never fails.
func (t *Buffer) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > keptBytes {
		t.b = append(t.b[:0], t.b[len(t.b)-keptBytes:]...)
	}
	return len(p), nil
}

// String returns what is kept, without space around it, as valid UTF-8.
func (t *Buffer) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.ToValidUTF8(bytes.TrimSpace(t.b), []byte("?")))
}
