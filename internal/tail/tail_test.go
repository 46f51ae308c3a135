package tail

import (
	"strings"
	"testing"
)

func TestTheEndIsKept(t *testing.T) {
	var b Buffer
	if got := b.String(); got != "" {
		t.Errorf("nothing was written, but %q is kept", got)
	}
	for range 1000 {
		if n, err := b.Write([]byte("0123456789")); n != 10 || err != nil {
			t.Fatalf("wrote %d bytes, error %v", n, err)
		}
	}
	if _, err := b.Write([]byte("the end \xff\n")); err != nil {
		t.Fatal(err)
	}
	got := b.String()
	if !strings.HasSuffix(got, "789the end ?") || len(got) > keptBytes {
		t.Errorf("%d bytes are kept, which end with %q", len(got), got[len(got)-20:])
	}
	if _, err := b.Write([]byte(strings.Repeat("x", 3*keptBytes))); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); got != strings.Repeat("x", keptBytes) {
		t.Errorf("of a long write, %d bytes are kept", len(got))
	}
}
