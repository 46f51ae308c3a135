package sigv4

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// reloadEvery is how often a key file is looked at.
	reloadEvery = time.Second
	// maxKeyFileBytes bounds a key file.
	maxKeyFileBytes = 1 << 20

	iniAccessKey = "aws_access_key_id"
	iniSecretKey = "aws_secret_access_key"
)

// ErrNoKeys means that a key file holds no key.
var ErrNoKeys = errors.New("the file holds no keys")

// Keys are the keys in a file of the form of AWS's shared credentials: one
// pair in each profile. It is read again, within about a second, after it has
// changed. A changed file that cannot be read or parsed is logged, and the keys
// from before stay. Keys is a KeySource.
type Keys struct {
	path    string
	log     *slog.Logger
	now     func() time.Time
	looked  atomic.Int64 // Unix nanoseconds of the last look at the file
	current atomic.Pointer[keySet]
}

// keySet is what a file held at one time.
type keySet struct {
	list    []Key
	secrets map[string]string
	info    fs.FileInfo
}

// OpenKeys reads the key file at path. Where there is none, it makes one with
// a fresh pair under the profile "default", readable by its owner only. It
// returns an error that wraps ErrNoKeys for a file without keys. A nil log is
// slog.Default().
func OpenKeys(path string, log *slog.Logger) (*Keys, error) {
	if log == nil {
		log = slog.Default()
	}
	if err := generate(path); err != nil {
		return nil, fmt.Errorf("make key file: %w", err)
	}
	k := &Keys{path: path, log: log, now: time.Now}
	set, err := readKeys(path)
	if err != nil {
		return nil, err
	}
	k.current.Store(set)
	k.looked.Store(k.now().UnixNano())
	return k, nil
}

// First returns the first pair in the file.
func (k *Keys) First() Key {
	k.refresh()
	return k.current.Load().list[0]
}

// Secret implements KeySource.
func (k *Keys) Secret(accessKey string) (string, bool) {
	k.refresh()
	secret, ok := k.current.Load().secrets[accessKey]
	return secret, ok
}

// refresh reads the file again if it is time to look at it and it has changed.
func (k *Keys) refresh() {
	now, looked := k.now().UnixNano(), k.looked.Load()
	if since := now - looked; since >= 0 && since < int64(reloadEvery) || !k.looked.CompareAndSwap(looked, now) {
		return
	}
	old := k.current.Load()
	info, err := os.Stat(k.path)
	if err == nil && os.SameFile(info, old.info) && info.ModTime().Equal(old.info.ModTime()) && info.Size() == old.info.Size() {
		return
	}
	set, err := readKeys(k.path)
	if err != nil {
		k.log.Warn("the keys of before stay valid", "error", err)
		if info == nil {
			return
		}
		// It is read again when it changes, not every second.
		set = &keySet{old.list, old.secrets, info}
	}
	k.current.Store(set)
}

// generate makes a key file with a fresh pair, if there is no file.
func generate(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".keys-*") // of mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	key := NewKey()
	if _, err := fmt.Fprintf(f, "[default]\n%s = %s\n%s = %s\n", iniAccessKey, key.ID, iniSecretKey, key.Secret); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	// A link, unlike a renaming, leaves a file alone that another process has
	// made meanwhile.
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// NewKey makes up a pair of keys.
func NewKey() Key {
	return Key{ID: "VOLLEY" + rand.Text()[:14], Secret: (rand.Text() + rand.Text())[:40]}
}

func readKeys(path string) (*keySet, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read key file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read key file: %w", err)
	}
	if info.Size() > maxKeyFileBytes {
		return nil, fmt.Errorf("read key file %s: it has %d bytes, more than %d", path, info.Size(), maxKeyFileBytes)
	}
	var text bytes.Buffer
	if _, err := text.ReadFrom(f); err != nil {
		return nil, fmt.Errorf("read key file: %w", err)
	}
	list, err := ParseKeys(text.Bytes())
	if err != nil {
		return nil, fmt.Errorf("read key file %s: %w", path, err)
	}
	set := &keySet{list: list, secrets: make(map[string]string, len(list)), info: info}
	for _, key := range list {
		set.secrets[key.ID] = key.Secret
	}
	return set, nil
}

// ParseKeys returns the pairs in the text of a shared credentials file, in
// their order. Settings that are no keys are passed over. Errors name the line
// or profile and never repeat what is written there; without any pair the error
// wraps ErrNoKeys.
func ParseKeys(text []byte) ([]Key, error) {
	var keys []Key
	var key Key
	profile, number := "", 0
	end := func() error {
		if (key.ID == "") != (key.Secret == "") {
			return fmt.Errorf("profile %q: of %s and %s only one is set", profile, iniAccessKey, iniSecretKey)
		}
		if key.ID != "" {
			for _, other := range keys {
				if other.ID == key.ID && other.Secret != key.Secret {
					return fmt.Errorf("profile %q: its access key is there already, with another secret", profile)
				}
			}
			keys = append(keys, key)
		}
		key = Key{}
		return nil
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, maxKeyFileBytes)
	for lines.Scan() {
		number++
		raw := lines.Text()
		line := strings.TrimSpace(raw)
		indented := raw != strings.TrimLeft(raw, " \t")
		switch {
		case line == "", line[0] == '#', line[0] == ';':
			continue
		case line[0] == '[':
			name, rest, ok := strings.Cut(line[1:], "]")
			rest = strings.TrimSpace(rest)
			if !ok || rest != "" && rest[0] != '#' && rest[0] != ';' {
				return nil, fmt.Errorf("line %d: a profile is written [name]", number)
			}
			if err := end(); err != nil {
				return nil, err
			}
			profile = strings.TrimSpace(name)
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if indented { // it belongs to the setting above
			continue
		}
		if !ok {
			return nil, fmt.Errorf("line %d: it is neither [profile] nor name = value", number)
		}
		value = strings.TrimSpace(value)
		switch strings.ToLower(strings.TrimSpace(name)) {
		case iniAccessKey:
			key.ID = value
		case iniSecretKey:
			key.Secret = value
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("line %d: %w", number+1, err)
	}
	if err := end(); err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: write a profile with %s and %s", ErrNoKeys, iniAccessKey, iniSecretKey)
	}
	return keys, nil
}
