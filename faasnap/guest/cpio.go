package guest

import (
	"fmt"
	"io"
)

// The kinds and modes of what is in an archive.
const (
	modeDir  = 0o040755
	modeFile = 0o100755
	modeChar = 0o020600
)

// archive writes a cpio archive of the kind that kernels take as an initrd
// ("newc"). All in it belongs to root and is as old as the epoch, so the same
// content gives the same bytes. After an error it writes nothing more.
type archive struct {
	w       io.Writer
	err     error
	offset  int
	inodes  int
	padding [4]byte
}

func (a *archive) write(p []byte) {
	if a.err != nil {
		return
	}
	n, err := a.w.Write(p)
	a.offset += n
	a.err = err
}

// pad fills up to a multiple of four bytes.
func (a *archive) pad() { a.write(a.padding[:-a.offset&3]) }

// add writes an entry. Directories come before what is in them. major and
// minor are those of a device.
func (a *archive) add(name string, mode, major, minor int, content []byte) {
	a.inodes++
	links := 1
	if mode == modeDir {
		links = 2
	}
	// Inode, mode, owner, group, links, time, size, the file system's device,
	// the entry's device, the length of the name with its zero, and a sum.
	a.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.inodes, mode, 0, 0, links, 0, len(content), 0, 0, major, minor, len(name)+1, 0))
	a.write(append([]byte(name), 0))
	a.pad()
	a.write(content)
	a.pad()
}

func (a *archive) dir(name string)                  { a.add(name, modeDir, 0, 0, nil) }
func (a *archive) file(name string, content []byte) { a.add(name, modeFile, 0, 0, content) }
func (a *archive) device(name string, major, minor int) {
	a.add(name, modeChar, major, minor, nil)
}

// close writes the end of the archive and returns the first error.
func (a *archive) close() error {
	a.inodes = -1 // the end has inode 0
	a.add("TRAILER!!!", 0, 0, 0, nil)
	return a.err
}
