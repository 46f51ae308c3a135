package sigv4

import (
	"bufio"
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// read parses a request as a server does.
func read(t testing.TB, wire []byte) *http.Request {
	t.Helper()
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(wire)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAMissingKeyFileIsMade(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "keys")
	k, err := OpenKeys(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want mode 0600", info.Mode(), err)
	}
	key := k.First()
	if len(key.ID) != 20 || len(key.Secret) != 40 {
		t.Errorf("keys of %d and %d bytes", len(key.ID), len(key.Secret))
	}
	again, err := OpenKeys(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if again.First() != key {
		t.Error("a second opening made another pair")
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("%v is left beside the key file", entries)
	}
}

func TestAChangedKeyFileIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	write := func(text string) {
		t.Helper()
		// As editors do it, so that the file is another one.
		if err := os.WriteFile(path+"~", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+"~", path); err != nil {
			t.Fatal(err)
		}
	}
	write("[a]\naws_access_key_id = A\naws_secret_access_key = secret-a\n")
	var log bytes.Buffer
	k, err := OpenKeys(path, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	k.now = func() time.Time { return now }
	has := func(id string, want bool) {
		t.Helper()
		if _, ok := k.Secret(id); ok != want {
			t.Errorf("key %s: %v, want %v", id, ok, want)
		}
	}
	has("A", true)
	write("[a]\naws_access_key_id = B\naws_secret_access_key = secret-b\n")
	has("B", false) // it is not looked at all the time
	now = now.Add(2 * reloadEvery)
	has("B", true)
	has("A", false)

	write("[a]\naws_access_key_id = C\n")
	now = now.Add(2 * reloadEvery)
	has("B", true)
	now = now.Add(2 * reloadEvery)
	has("B", true)
	if n := strings.Count(log.String(), "\n"); n != 1 || strings.Contains(log.String(), "secret-") {
		t.Errorf("log: %s", log.String())
	}
	write("[c]\naws_access_key_id = C\naws_secret_access_key = secret-c\n")
	now = now.Add(2 * reloadEvery)
	has("C", true)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	now = now.Add(2 * reloadEvery)
	has("C", true)
}

func TestParseKeys(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []Key
		err        string
	}{
		{"two profiles", "# mine\n[default]\naws_access_key_id = A\naws_secret_access_key=s/1+=\n\n; other\n[ two ] # x\nAWS_ACCESS_KEY_ID=B\naws_secret_access_key =  s2  \nregion = r\n",
			[]Key{{"A", "s/1+="}, {"B", "s2"}}, ""},
		{"settings below a setting", "[a]\naws_access_key_id = A\ns3 =\n  max = 1\n  odd\naws_secret_access_key = s\r\n", []Key{{"A", "s"}}, ""},
		{"a profile without keys", "[a]\nregion = r\n[b]\naws_access_key_id = A\naws_secret_access_key = s\n", []Key{{"A", "s"}}, ""},
		{"nothing", "", nil, "holds no keys"},
		{"no keys", "[a]\nregion=r\n", nil, "holds no keys"},
		{"half a pair", "[mine]\naws_access_key_id = A\n", nil, `profile "mine"`},
		{"the other half", "[mine]\naws_secret_access_key = A\n[b]\n", nil, `profile "mine"`},
		{"one key with two secrets", "[a]\naws_access_key_id = A\naws_secret_access_key = s\n[b]\naws_access_key_id = A\naws_secret_access_key = t\n", nil, `profile "b"`},
		{"a line that is nothing", "[a]\nsecret-words\n", nil, "line 2"},
		{"a profile that does not end", "[a\n", nil, "line 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ParseKeys([]byte(tc.text))
			if !slices.Equal(got, tc.want) || (err == nil) != (tc.err == "") {
				t.Fatalf("%v, %v", got, err)
			}
			if err != nil && (!strings.Contains(err.Error(), tc.err) || strings.Contains(err.Error(), "secret-words")) {
				t.Errorf("error %q, want it to say %q", err, tc.err)
			}
			if tc.err == "holds no keys" && !errors.Is(err, ErrNoKeys) {
				t.Errorf("%v is not ErrNoKeys", err)
			}
		})
	}
}

func TestAKeyFileThatCannotBeUsedIsAnError(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad")
	if err := os.WriteFile(bad, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"nonsense": bad, "a directory": dir, "below a file": filepath.Join(bad, "x")} {
		if _, err := OpenKeys(path, nil); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func FuzzParseKeys(f *testing.F) {
	f.Add("[a]\naws_access_key_id = A\naws_secret_access_key = s\n")
	f.Add("[a\n=\n[]\n ;\n")
	f.Fuzz(func(t *testing.T, text string) {
		keys, err := ParseKeys([]byte(text))
		if (err == nil) != (len(keys) > 0) {
			t.Errorf("%d keys and %v", len(keys), err)
		}
		for _, key := range keys {
			if key.ID == "" || key.Secret == "" {
				t.Error("half a pair")
			}
		}
	})
}
