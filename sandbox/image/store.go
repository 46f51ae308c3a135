package image

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/dircache"
)

// Limits bounds what an image may hold. A zero field stands for its default.
type Limits struct {
	// ArchiveBytes bounds the file of an image that was uploaded: 10 GiB by
	// default, as AWS Lambda bounds images.
	ArchiveBytes int64
	// UnpackedBytes bounds the files of all layers together: 10 GiB by default.
	UnpackedBytes int64
	// Entries bounds the files of all layers by number: 1,000,000 by default.
	Entries int64
	// Layers bounds the layers by number: 120 by default, which is as many as
	// overlayfs is sure to take here.
	Layers int
}

func (l Limits) withDefaults() Limits {
	if l.ArchiveBytes == 0 {
		l.ArchiveBytes = 10 << 30
	}
	if l.UnpackedBytes == 0 {
		l.UnpackedBytes = 10 << 30
	}
	if l.Entries == 0 {
		l.Entries = 1_000_000
	}
	if l.Layers == 0 {
		l.Layers = 120
	}
	return l
}

// Objects is where images that were uploaded come from.
type Objects interface {
	// Get opens the object of that key for reading. The caller closes it.
	Get(ctx context.Context, key string) (io.ReadCloser, error)
}

// Config says how a Store works.
type Config struct {
	// Dir is the store's directory, which Open makes if needed.
	Dir string
	// Objects may be nil if all images come from registries.
	Objects Objects
	// Keychain has the credentials for registries: that of Docker's
	// configuration file if nil.
	Keychain authn.Keychain
	// MaxBytes bounds the unpacked layers that are kept though no sandbox uses
	// them: 20 GiB if 0.
	MaxBytes int64
	Limits   Limits
}

func (c Config) registries() Registries { return Registries{Keychain: c.Keychain, Limits: c.Limits} }

// Store keeps unpacked images; layers that images share are kept once. Its
// methods may be called concurrently. It needs root, since layers hold files
// of many owners.
type Store struct {
	cfg    Config
	limits Limits
	// downloads holds archives while they are unpacked.
	downloads string
	dirs      *dircache.Cache
}

// Open opens a store. The error wraps sys.ErrLocked when another process uses
// its directory. The caller closes it.
func Open(cfg Config) (*Store, error) {
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = 20 << 30
	}
	dirs, err := dircache.Open(cfg.Dir, cfg.MaxBytes)
	if err != nil {
		return nil, fmt.Errorf("open images: %w", err)
	}
	s := &Store{cfg: cfg, limits: cfg.Limits.withDefaults(), downloads: filepath.Join(cfg.Dir, "downloads"), dirs: dirs}
	if err := errors.Join(os.RemoveAll(s.downloads), os.Mkdir(s.downloads, 0o700)); err != nil {
		return nil, errors.Join(fmt.Errorf("open images: %w", err), dirs.Close())
	}
	return s, nil
}

// Close waits for the downloads under way and closes the store. What is
// unpacked stays on disk for the next process. It is idempotent.
func (s *Store) Close() error { return s.dirs.Close() }

// parallelLayers bounds how many layers of an image are fetched at once.
const parallelLayers = 3

// manifestName is the file with the description of an unpacked image.
const manifestName = "image.json"

// description is what is kept of an image besides its layers.
type description struct {
	Config RunConfig `json:"config"`
	// DiffIDs are the digests of the layers from the lowest up.
	DiffIDs []string `json:"diffIDs"`
}

// Open gives the unpacked image of a function, fetching it if need be. An
// image that cannot be fetched, is damaged, too large, malicious, or for other
// machines gives a *function.Error of code InvalidImage. The caller releases
// the Image.
func (s *Store) Open(ctx context.Context, f *function.Function) (*Image, error) {
	digest, err := hex.DecodeString(f.Code.SHA256)
	if err != nil || len(digest) != sha256.Size {
		return nil, function.Errorf(function.InvalidImage, "the digest %q of the image of %s is no SHA-256 in hex", f.Code.SHA256, f.Name)
	}
	src := &source{store: s, code: f.Code, budget: newBudget(s.limits)}
	img, err := s.open(ctx, "image-"+f.Code.SHA256, src)
	if err = errors.Join(err, src.close()); err != nil {
		if img != nil {
			img.Release()
		}
		return nil, fmt.Errorf("open image of %s: %w", f.Name, err)
	}
	return img, nil
}

func (s *Store) open(ctx context.Context, key string, src *source) (img *Image, err error) {
	var mu sync.Mutex
	var releases []func()
	defer func() {
		if err != nil {
			for _, release := range releases {
				release()
			}
		}
	}()
	get := func(ctx context.Context, key string, build dircache.Build) (string, error) {
		ref, err := s.dirs.Get(ctx, key, build)
		if err != nil {
			return "", err
		}
		mu.Lock()
		defer mu.Unlock()
		releases = append(releases, ref.Release)
		return ref.Dir(), nil
	}
	dir, err := get(ctx, key, src.describe)
	if err != nil {
		return nil, err
	}
	var d description
	text, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &d); err != nil {
		return nil, fmt.Errorf("read description: %w", err)
	}
	layers := make([]string, len(d.DiffIDs))
	fetch, fetchCtx := errgroup.WithContext(ctx)
	fetch.SetLimit(parallelLayers)
	for i, diffID := range d.DiffIDs {
		layerKey, err := layerKey(diffID)
		if err != nil {
			return nil, err
		}
		fetch.Go(func() error {
			dir, err := get(fetchCtx, layerKey, func(ctx context.Context, dir string) (int64, error) {
				return src.unpackLayer(ctx, i, diffID, dir)
			})
			layers[i] = dir
			return err
		})
	}
	if err := fetch.Wait(); err != nil {
		return nil, err
	}
	// All entries of the cache are in one directory.
	parent := filepath.Dir(filepath.Dir(dir))
	for i := range layers {
		if layers[i], err = filepath.Rel(parent, layers[i]); err != nil {
			return nil, err
		}
	}
	slices.Reverse(layers)
	// An image may list a layer twice; below itself, it adds nothing.
	layers = firsts(layers)
	return newImage(Image{Key: key, Dir: parent, Layers: layers, Config: d.Config}, releases), nil
}

// firsts returns the first of each string.
func firsts(list []string) []string {
	seen := map[string]bool{}
	return slices.DeleteFunc(list, func(s string) bool {
		was := seen[s]
		seen[s] = true
		return was
	})
}

// layerKey returns a layer's key in the cache. It is short, so that many fit
// into the options of one mount: 128 bits of the digest.
func layerKey(diffID string) (string, error) {
	h, err := v1.NewHash(diffID)
	if err != nil {
		return "", function.Errorf(function.InvalidImage, "the image's layer %q has no proper digest", diffID)
	}
	digest, err := hex.DecodeString(h.Hex)
	if err != nil || h.Algorithm != "sha256" || len(digest) != sha256.Size {
		return "", function.Errorf(function.InvalidImage, "the image's layer %q has no proper digest", diffID)
	}
	return "l" + base64.RawURLEncoding.EncodeToString(digest[:16]), nil
}

// source is where one image comes from. Its image is opened when first needed,
// which is never if all is in the cache.
type source struct {
	store  *Store
	code   function.Code
	budget *budget

	mu      sync.Mutex
	image   v1.Image
	config  *v1.ConfigFile
	closers []func() error
}

// open opens the image and checks what can be checked without its layers.
func (s *source) open(ctx context.Context) (v1.Image, *v1.ConfigFile, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.image != nil {
		return s.image, s.config, nil
	}
	var img v1.Image
	var err error
	if s.code.Object != "" {
		img, err = s.openObject(ctx)
	} else {
		img, err = s.store.pull(ctx, s.code)
	}
	if err != nil {
		return nil, nil, err
	}
	config, err := checkImage(img, s.store.limits)
	if err != nil {
		return nil, nil, blame(ctx, err)
	}
	s.image, s.config = img, config
	return img, config, nil
}

// blame makes an error InvalidImage, unless the context ended, it has a code of
// its own, or this machine is at fault.
func blame(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, ok := errors.AsType[*function.Error](err); ok {
		return err
	}
	for _, fault := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EROFS, syscall.EMFILE, syscall.ENFILE, syscall.EPERM} {
		if errors.Is(err, fault) {
			return err
		}
	}
	return function.Errorf(function.InvalidImage, "the image cannot be used: %v", err)
}

// checkImage checks manifest and configuration, and that they fit this
// machine.
func checkImage(img v1.Image, limits Limits) (*v1.ConfigFile, error) {
	manifest, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	raw, err := img.RawConfigFile()
	if err != nil {
		return nil, err
	}
	if got := sha256.Sum256(raw); hex.EncodeToString(got[:]) != manifest.Config.Digest.Hex {
		return nil, errors.New("its configuration is damaged: the digest does not match")
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	switch n := len(config.RootFS.DiffIDs); {
	case n != len(manifest.Layers):
		return nil, fmt.Errorf("it has %d layers but lists the digests of %d", len(manifest.Layers), n)
	case n == 0:
		return nil, errors.New("it has no layers")
	case n > limits.Layers:
		return nil, fmt.Errorf("it has %d layers, more than the limit of %d", n, limits.Layers)
	case config.OS != "" && config.OS != "linux":
		return nil, fmt.Errorf("it is for %s, not for linux", config.OS)
	case config.Architecture != "" && config.Architecture != runtime.GOARCH:
		return nil, fmt.Errorf("it is for %s, but this machine is %s: build it with --platform linux/%s", config.Architecture, runtime.GOARCH, runtime.GOARCH)
	}
	return config, nil
}

// describe writes an image's description; it is a dircache.Build.
func (s *source) describe(ctx context.Context, dir string) (int64, error) {
	_, config, err := s.open(ctx)
	if err != nil {
		return 0, err
	}
	d := description{Config: RunConfig{
		EntryPoint: config.Config.Entrypoint, Command: config.Config.Cmd, Env: config.Config.Env,
		WorkingDir: config.Config.WorkingDir, User: config.Config.User,
	}}
	for _, id := range config.RootFS.DiffIDs {
		d.DiffIDs = append(d.DiffIDs, id.String())
	}
	text, err := json.Marshal(d)
	if err != nil {
		return 0, err
	}
	return int64(len(text)), os.WriteFile(filepath.Join(dir, manifestName), text, 0o600)
}

// unpackLayer unpacks the i-th layer from below into dir.
func (s *source) unpackLayer(ctx context.Context, i int, diffID, dir string) (int64, error) {
	img, config, err := s.open(ctx)
	if err != nil {
		return 0, err
	}
	layers, err := img.Layers()
	if err != nil {
		return 0, blame(ctx, err)
	}
	if i >= len(layers) || config.RootFS.DiffIDs[i].String() != diffID {
		return 0, function.Errorf(function.InvalidImage, "the image is not the one that was unpacked before")
	}
	content, err := layers[i].Uncompressed()
	if err != nil {
		return 0, blame(ctx, fmt.Errorf("read layer %d: %w", i+1, err))
	}
	defer content.Close()
	size, err := unpack(ctx, content, diffID, dir, s.budget)
	if err != nil {
		return 0, fmt.Errorf("unpack layer %d: %w", i+1, err)
	}
	return size, nil
}

func (s *source) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, c := range slices.Backward(s.closers) {
		errs = append(errs, c())
	}
	s.closers = nil
	return errors.Join(errs...)
}
