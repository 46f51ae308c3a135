package snapshot

import (
	"bytes"
	"reflect"
	"testing"
	"time"
)

func FuzzDecodeMeta(f *testing.F) {
	m := Meta{
		ID: "0123456789abcdef0123456789abcdef", Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		MemoryBytes: 2 << 20, PageBytes: 4096, ChunkBytes: ChunkSize, Labels: map[string]string{"function": "f"},
		Files: []File{{"loading", 0, Sums{}}, {"memory", 2 << 20, Sums{1, 0xffeeddcc}}, {"plan", 32, Sums{3}}, {"working", 24, Sums{4}}},
	}
	b, err := encodeMeta(m)
	if err != nil {
		f.Fatal(err)
	}
	if got, err := decodeMeta(b); err != nil || !reflect.DeepEqual(got, m) {
		f.Fatalf("got %v (%v); want %v", got, err, m)
	}
	f.Add(b)
	inner := b[len(prefix(nil)) : len(b)-len(suffix)]
	f.Add(inner)
	f.Fuzz(func(t *testing.T, b []byte) {
		// With the right checksum, so that the metadata itself is looked at.
		for _, b := range [][]byte{b, append(append(prefix(b), b...), suffix...)} {
			m, err := decodeMeta(b)
			if err != nil {
				continue
			}
			again, err := encodeMeta(m)
			if err != nil {
				t.Errorf("took %q, which cannot be written: %v", b, err)
				continue
			}
			if m2, err := decodeMeta(again); err != nil || !reflect.DeepEqual(m, m2) {
				t.Errorf("%q became %q (%v)", b, again, err)
			}
		}
		if bytes.HasSuffix(b, []byte("}\n\n")) {
			if _, err := decodeMeta(b); err == nil {
				t.Error("took what comes after the end")
			}
		}
	})
}
