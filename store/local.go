package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	// staleAfter is the age at which a temporary file must belong to a process
	// that was killed.
	staleAfter = 24 * time.Hour
	// commitTries is how often a commit makes a folder that a concurrent Delete
	// takes away.
	commitTries = 100
)

// Local is a Store in a directory: the object "a/b" is the file a/b. Several
// processes may use one directory. A key cannot be both an object and the
// folder of others: with "a" there, Put of "a/b" fails. Symbolic links and
// other special files are no objects. Objects outlive the process as soon as
// Put has returned; a power cut may still take the latest ones.
type Local struct {
	root string
}

// OpenLocal returns the store in dir, which it makes where needed. Errors wrap
// ErrPermission and ErrNoSpace. It removes what killed processes left
// unfinished more than a day ago.
func OpenLocal(dir string) (*Local, error) {
	if dir == "" {
		return nil, errors.New("open local store: the directory is not given")
	}
	root, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open local store: %w", err)
	}
	if err := os.MkdirAll(root, 0o777); err != nil {
		return nil, fmt.Errorf("open local store: %w", classify(err))
	}
	l := &Local{root: root}
	l.removeStale()
	return l, nil
}

// Put implements Store.
func (l *Local) Put(ctx context.Context, key string, r io.Reader) (int64, error) {
	if err := CheckKey(key); err != nil {
		return 0, err
	}
	temp, n, err := l.stage(ctx, r)
	if err != nil {
		return 0, fmt.Errorf("put %q: %w", key, err)
	}
	if err := l.commit(temp, key); err != nil {
		os.Remove(temp)
		return 0, fmt.Errorf("put %q: %w", key, err)
	}
	return n, nil
}

// PutFile implements Store. It renames the file, or copies it where path is on
// another file system. Only a regular file can be taken over.
func (l *Local) PutFile(ctx context.Context, key, path string) (int64, error) {
	if err := CheckKey(key); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("put %q: %w", key, err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return 0, fmt.Errorf("put %q: %w", key, err)
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("put %q: %s is not a regular file", key, path)
	}
	err = l.commit(path, key)
	if errors.Is(err, syscall.EXDEV) {
		return l.putCopy(ctx, key, path)
	}
	if err != nil {
		return 0, fmt.Errorf("put %q: %w", key, err)
	}
	return info.Size(), nil
}

// putCopy is PutFile from another file system.
func (l *Local) putCopy(ctx context.Context, key, path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("put %q: %w", key, err)
	}
	defer f.Close()
	n, err := l.Put(ctx, key, f)
	if err != nil {
		return 0, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("put %q: remove the original: %w", key, err)
	}
	return n, nil
}

// Get implements Store. A range that reaches past the end is cut there; one
// that starts at or past the end is empty.
func (l *Local) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	f, _, err := l.open(ctx, key)
	if err != nil {
		return nil, err
	}
	if offset < 0 {
		f.Close()
		return nil, fmt.Errorf("get %q: negative offset %d", key, offset)
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		f.Close()
		return nil, fmt.Errorf("get %q: %w", key, err)
	}
	if length < 0 {
		return f, nil
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(f, length), f}, nil
}

// open returns the file of an object, at its start. The caller closes it.
func (l *Local) open(ctx context.Context, key string) (*os.File, Info, error) {
	// Stat first: to open something that is not a file may block.
	if _, err := l.Stat(ctx, key); err != nil {
		return nil, Info{}, err
	}
	f, err := os.Open(l.LocalPath(key))
	if err != nil {
		return nil, Info{}, fmt.Errorf("get %q: %w", key, classifyRead(err))
	}
	// The file may have been replaced since.
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, Info{}, fmt.Errorf("get %q: %w", key, classifyRead(err))
	}
	return f, localInfo(key, info), nil
}

// Stat implements Store. The ETag is empty.
func (l *Local) Stat(ctx context.Context, key string) (Info, error) {
	if err := CheckKey(key); err != nil {
		return Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return Info{}, fmt.Errorf("stat %q: %w", key, err)
	}
	info, err := os.Lstat(l.LocalPath(key))
	if err != nil {
		return Info{}, fmt.Errorf("stat %q: %w", key, classifyRead(err))
	}
	if !info.Mode().IsRegular() {
		return Info{}, fmt.Errorf("stat %q: %w", key, ErrNotFound)
	}
	return localInfo(key, info), nil
}

// Delete implements Store. It removes folders that become empty.
func (l *Local) Delete(ctx context.Context, key string) error {
	_, err := l.Stat(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	if err := os.Remove(l.LocalPath(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete %q: %w", key, classify(err))
	}
	l.prune(key)
	return nil
}

// List implements Store. It reads one folder at a time. An object that is put
// or deleted meanwhile may or may not be among them. It stops after an error.
func (l *Local) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		w := walk{ctx: ctx, root: l.root, prefix: prefix, yield: yield}
		w.run()
	}
}

// LocalPath implements LocalPather. The key has to be one that CheckKey allows.
func (l *Local) LocalPath(key string) string {
	return filepath.Join(l.root, filepath.FromSlash(key))
}

// URL implements Store.
func (l *Local) URL() string {
	return (&url.URL{Scheme: "file", Path: filepath.ToSlash(l.root)}).String()
}

// stage writes what r gives to a new temporary file and returns its path and
// length in bytes. The caller commits or removes it. On error nothing is left.
func (l *Local) stage(ctx context.Context, r io.Reader) (temp string, n int64, err error) {
	if err := ctx.Err(); err != nil {
		return "", 0, err
	}
	f, err := l.createTemp()
	if err != nil {
		return "", 0, classify(err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	source := &sourceReader{ctx: ctx, r: r}
	n, err = io.Copy(f, source)
	if source.err != nil {
		return "", 0, fmt.Errorf("read: %w", source.err)
	}
	if err != nil {
		return "", 0, classify(err)
	}
	if err := f.Close(); err != nil {
		return "", 0, classify(err)
	}
	return f.Name(), n, nil
}

// createTemp makes a file in the temporary folder, with the mode that the
// umask gives (os.CreateTemp would keep other users from reading the object).
func (l *Local) createTemp() (*os.File, error) {
	dir := filepath.Join(l.root, tempDir)
	name := filepath.Join(dir, rand.Text())
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, err
	}
	return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
}

// commit makes the file at path the object under key. On error the file is
// left.
func (l *Local) commit(path, key string) error {
	target := l.LocalPath(key)
	var err error
	for range commitTries {
		err = os.MkdirAll(filepath.Dir(target), 0o777)
		if err == nil {
			err = os.Rename(path, target)
		}
		if err == nil {
			return nil
		}
		l.prune(key)
		if errors.Is(err, syscall.ENOTDIR) {
			return fmt.Errorf("an object stands where this key needs a folder: %w", err)
		}
		if info, e := os.Lstat(target); e == nil && info.IsDir() {
			// An empty folder may be left over, and is then in nobody's way.
			if removeFolder(target) != nil {
				return fmt.Errorf("other objects have this key as their folder: %w", err)
			}
			continue
		}
		// A concurrent Delete may have taken a folder away, before the rename or
		// while MkdirAll looked at it.
		if _, e := os.Lstat(path); e != nil || (!errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist)) {
			break
		}
	}
	return classify(err)
}

// prune removes the empty folders on the way to key.
func (l *Local) prune(key string) {
	for dir := path.Dir(key); dir != "."; dir = path.Dir(dir) {
		if err := removeFolder(l.LocalPath(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return
		}
	}
}

// removeFolder removes an empty folder and nothing else: the kernel takes a
// path that ends in a slash for a folder's, and an object stays.
func removeFolder(path string) error {
	return os.Remove(path + string(filepath.Separator))
}

// removeStale removes temporary files that nobody can be writing any more.
// What it cannot remove stays; that harms nobody.
func (l *Local) removeStale() {
	dir := filepath.Join(l.root, tempDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > staleAfter {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

// sourceReader reads on behalf of a Put. It ends with its context and keeps
// its error, which tells a failing source from a failing disk.
type sourceReader struct {
	ctx context.Context
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		s.err = err
		return 0, err
	}
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

func localInfo(key string, info fs.FileInfo) Info {
	return Info{Key: key, SizeBytes: info.Size(), Modified: info.ModTime()}
}

// classify wraps err with the sentinel that callers decide on, if there is one.
func classify(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: %w", ErrPermission, err)
	}
	return err
}

// classifyRead is classify where a missing file is a missing object.
func classifyRead(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return classify(err)
}

// walk goes through the objects of a directory in the order of their keys.
type walk struct {
	ctx    context.Context
	root   string
	prefix string
	// after leaves out keys up to and including it. The receiver of the objects
	// may raise it to skip some.
	after string
	yield func(Info, error) bool
}

// run calls yield until it returns false or there are no more objects.
func (w *walk) run() {
	folder := ""
	if i := strings.LastIndexByte(w.prefix, '/'); i >= 0 {
		folder = w.prefix[:i+1]
		if CheckKey(w.prefix[:i]) != nil {
			return // no object can be there, and the path may lead elsewhere
		}
	}
	w.folder(folder)
}

// folder visits what is in a folder, given as a key that ends in a slash, or
// the root. It reports whether to go on.
func (w *walk) folder(folder string) bool {
	if err := w.ctx.Err(); err != nil {
		w.yield(Info{}, fmt.Errorf("list %q: %w", w.prefix, err))
		return false
	}
	entries, err := os.ReadDir(filepath.Join(w.root, filepath.FromSlash(folder)))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return true
		}
		w.yield(Info{}, fmt.Errorf("list %q: %w", w.prefix, classify(err)))
		return false
	}
	for _, e := range inKeyOrder(folder, entries) {
		if !w.visit(e) {
			return false
		}
	}
	return true
}

func (w *walk) visit(e entry) bool {
	if e.IsDir() {
		related := strings.HasPrefix(e.key, w.prefix) || strings.HasPrefix(w.prefix, e.key)
		if !related || e.key == tempDir+"/" || (e.key <= w.after && !strings.HasPrefix(w.after, e.key)) {
			return true
		}
		return w.folder(e.key)
	}
	if !e.Type().IsRegular() || e.key <= w.after || !strings.HasPrefix(e.key, w.prefix) || CheckKey(e.key) != nil {
		return true
	}
	info, err := e.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return true // deleted meanwhile
	}
	if err != nil {
		w.yield(Info{}, fmt.Errorf("list %q: %w", e.key, classify(err)))
		return false
	}
	return w.yield(localInfo(e.key, info), nil)
}

// entry is a file or folder with its key; a folder's ends in a slash.
type entry struct {
	fs.DirEntry
	key string
}

// inKeyOrder sorts the entries of a folder as the keys of their objects sort:
// "a-b" comes before "a/b", though the file a-b comes after the folder a.
func inKeyOrder(folder string, entries []fs.DirEntry) []entry {
	keyed := make([]entry, len(entries))
	for i, e := range entries {
		keyed[i] = entry{e, folder + e.Name()}
		if e.IsDir() {
			keyed[i].key += "/"
		}
	}
	slices.SortFunc(keyed, func(a, b entry) int { return strings.Compare(a.key, b.key) })
	return keyed
}
