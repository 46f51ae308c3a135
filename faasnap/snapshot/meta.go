package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"

	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/pages"
)

// The files that every snapshot has. All others are the VMM's.
const (
	// MetaFile is the metadata.
	MetaFile = "snapshot.json"
	// MemoryFile is guest memory, with holes where it is zero.
	MemoryFile = "memory"
	// LoadingFile is the loading set.
	LoadingFile = "loading"
	// PlanFile is an encoded pages.Plan.
	PlanFile = "plan"
	// WorkingFile is an encoded pages.WorkingSet.
	WorkingFile = "working"
)

const (
	format  = "volley-snapshot"
	version = 1
	// ChunkSize is how many bytes of a file each checksum is of: a group of 256
	// pages. The last one's chunk may be shorter.
	ChunkSize = mem.LoadChunk
)

// Meta is what a snapshot says of itself.
type Meta struct {
	// ID tells snapshots apart: 32 hexadecimal digits.
	ID string `json:"id"`
	// Created is when it was made.
	Created time.Time `json:"created"`
	// MemoryBytes is the size of guest memory.
	MemoryBytes int64 `json:"memoryBytes"`
	// PageBytes and ChunkBytes are pages.Size and ChunkSize.
	PageBytes  int `json:"pageBytes"`
	ChunkBytes int `json:"chunkBytes"`
	// Labels are for whoever makes snapshots: the function, the VMM, its
	// version. They may be nil.
	Labels map[string]string `json:"labels,omitempty"`
	// Files are all files but the metadata, in the order of names.
	Files []File `json:"files"`
}

// File is one file of a snapshot.
type File struct {
	Name      string `json:"name"`
	SizeBytes int64  `json:"sizeBytes"`
	// Sums are the CRC-32C checksums of the file's chunks, in order.
	Sums Sums `json:"crc32c"`
}

// Sums are checksums. As text, each is 8 hexadecimal digits, without anything
// between.
type Sums []uint32

// MarshalText returns the sums as text.
func (s Sums) MarshalText() ([]byte, error) {
	b := make([]byte, 0, 8*len(s))
	for _, sum := range s {
		b = hex.AppendEncode(b, []byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
	}
	return b, nil
}

// UnmarshalText reads what MarshalText returns.
func (s *Sums) UnmarshalText(text []byte) error {
	b, err := hex.AppendDecode(nil, text)
	if err != nil {
		return fmt.Errorf("checksums: %w", err)
	}
	if len(b)%4 != 0 {
		return fmt.Errorf("checksums of %d digits: want 8 for each", len(text))
	}
	*s = make(Sums, len(b)/4)
	for i := range *s {
		(*s)[i] = uint32(b[4*i])<<24 | uint32(b[4*i+1])<<16 | uint32(b[4*i+2])<<8 | uint32(b[4*i+3])
	}
	return nil
}

// file returns the entry of that name, or nil.
func (m *Meta) file(name string) *File {
	for i := range m.Files {
		if m.Files[i].Name == name {
			return &m.Files[i]
		}
	}
	return nil
}

// encodeMeta returns the metadata file: a line with the metadata and a checksum
// of its bytes.
func encodeMeta(m Meta) ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("encode metadata: %w", err)
	}
	inner, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode metadata: %w", err)
	}
	return append(append(prefix(inner), inner...), suffix...), nil
}

// prefix returns what comes before the metadata in its file, byte for byte.
func prefix(inner []byte) []byte {
	return fmt.Appendf(nil, `{"format":%q,"version":%d,"sha256":"%x","snapshot":`, format, version, sha256.Sum256(inner))
}

const suffix = "}\n"

// errVersion is that the metadata is of a version that this program does not
// know.
var errVersion = errors.New("unknown version")

// decodeMeta reads the metadata file. Its error is errVersion, or says what is
// wrong.
func decodeMeta(b []byte) (Meta, error) {
	var kind struct {
		Format  string `json:"format"`
		Version int    `json:"version"`
	}
	if err := json.Unmarshal(b, &kind); err != nil {
		return Meta{}, fmt.Errorf("not JSON: %w", err)
	}
	if kind.Format != format {
		return Meta{}, fmt.Errorf("format %q: want %q", kind.Format, format)
	}
	if kind.Version != version {
		return Meta{}, fmt.Errorf("version %d: this program knows %d: %w", kind.Version, version, errVersion)
	}
	// Not only the metadata has to be right: no byte may be another.
	n := len(prefix(nil))
	if len(b) < n+len(suffix) {
		return Meta{}, errors.New("truncated")
	}
	inner := b[n : len(b)-len(suffix)]
	if !bytes.Equal(b[:n], prefix(inner)) || string(b[n+len(inner):]) != suffix {
		return Meta{}, errors.New("metadata does not match its checksum")
	}
	var m Meta
	if err := decodeStrictly(inner, &m); err != nil {
		return Meta{}, err
	}
	return m, m.check()
}

// decodeStrictly takes one JSON value with known fields only.
func decodeStrictly(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}

var (
	idPattern   = regexp.MustCompile(`^[0-9a-f]{32}$`)
	namePattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$`)
)

// check returns an error if the metadata cannot be that of a snapshot.
func (m *Meta) check() error {
	switch {
	case !idPattern.MatchString(m.ID):
		return fmt.Errorf("id %q", m.ID)
	case m.PageBytes != pages.Size:
		return fmt.Errorf("pages of %d bytes: want %d", m.PageBytes, pages.Size)
	case m.ChunkBytes != ChunkSize:
		return fmt.Errorf("checksums of %d bytes: want %d", m.ChunkBytes, ChunkSize)
	case m.MemoryBytes <= 0 || m.MemoryBytes%pages.Size != 0 || m.MemoryBytes/pages.Size > pages.MaxPages:
		return fmt.Errorf("%d bytes of guest memory", m.MemoryBytes)
	}
	last := ""
	for _, f := range m.Files {
		switch {
		case !namePattern.MatchString(f.Name) || f.Name == MetaFile || isRemoteFile(f.Name):
			return fmt.Errorf("file name %q", f.Name)
		case f.Name <= last:
			return fmt.Errorf("file %s after %s", f.Name, last)
		case f.SizeBytes < 0 || chunks(f.SizeBytes) != int64(len(f.Sums)):
			return fmt.Errorf("file %s: %d checksums for %d bytes", f.Name, len(f.Sums), f.SizeBytes)
		}
		last = f.Name
	}
	for _, name := range []string{MemoryFile, LoadingFile, PlanFile, WorkingFile} {
		if m.file(name) == nil {
			return fmt.Errorf("no file %s", name)
		}
	}
	if size := m.file(MemoryFile).SizeBytes; size != m.MemoryBytes {
		return fmt.Errorf("file %s: %d bytes for %d bytes of guest memory", MemoryFile, size, m.MemoryBytes)
	}
	return nil
}

// chunks returns how many chunks a file of that size has. It does not overflow.
func chunks(size int64) int64 {
	n := size / ChunkSize
	if size%ChunkSize > 0 {
		n++
	}
	return n
}
