package vmm

import "io"

// Patient returns a writer to w for a guest's console. It never fails: once w
// has, it drops what is written to it, so that the guest goes on where nobody
// takes what it prints any more. It is not for concurrent use.
func Patient(w io.Writer) io.Writer { return &patient{to: w} }

type patient struct {
	to     io.Writer
	failed bool
}

// Write implements io.Writer.
func (w *patient) Write(p []byte) (int, error) {
	if !w.failed {
		_, err := w.to.Write(p)
		w.failed = err != nil
	}
	return len(p), nil
}
