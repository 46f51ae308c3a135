package store

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

func badKeys() []string {
	return []string{
		"", ".", "..", "/", "/abs", "a//b", "a/", "a/./b", "a/../b", "../a", "a/..", ".tmp", ".tmp/x",
		"a\x00b", "a\nb", "\x7f", "a\xff", "\uffff", strings.Repeat("k", 256), strings.Repeat("k/", 600) + "k",
	}
}

func FuzzCheckKey(f *testing.F) {
	for _, key := range append(badKeys(), "a", "a/b", "a b/日.mp4", "..a", "a/.tmp") {
		f.Add(key)
	}
	root := filepath.FromSlash("/root-of-a-store")
	f.Fuzz(func(t *testing.T, key string) {
		err := CheckKey(key)
		if err != nil {
			if !errors.Is(err, ErrBadKey) {
				t.Errorf("%v is not ErrBadKey", err)
			}
			return
		}
		path := (&Local{root: root}).LocalPath(key)
		back, err := filepath.Rel(root, path)
		if err != nil || filepath.ToSlash(back) != key {
			t.Errorf("key %q becomes the path %q", key, path)
		}
		if strings.HasPrefix(back, tempDir+string(filepath.Separator)) || back == tempDir {
			t.Errorf("key %q is a temporary file", key)
		}
	})
}
