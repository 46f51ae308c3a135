package mem

import (
	"fmt"
	"io"

	"github.com/volley-run/volley/faasnap/pages"
)

// Gather writes the loading-set file of a plan: the regions of the loading set
// in the order of groups and addresses, from the memory file, one after the
// other (thesis 5.3.7).
func Gather(loading io.Writer, p *pages.Plan, memory io.ReaderAt) error {
	buf := make([]byte, LoadChunk)
	for _, r := range p.Loads() {
		section := io.NewSectionReader(memory, int64(r.Start)*pages.Size, int64(r.Len())*pages.Size)
		n, err := io.CopyBuffer(loading, section, buf)
		if err == nil && n < section.Size() {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("gather loading set: pages %v: %w", r.Range, err)
		}
	}
	return nil
}
