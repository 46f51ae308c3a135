package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/volley-run/volley/function"
)

// openObject downloads an image that was uploaded, verifies it and opens it.
func (s *source) openObject(ctx context.Context) (v1.Image, error) {
	if s.store.cfg.Objects == nil {
		return nil, errors.New("no object store is configured")
	}
	body, err := s.store.cfg.Objects.Get(ctx, s.code.Object)
	if err != nil {
		return nil, fmt.Errorf("get image %s: %w", s.code.Object, err)
	}
	defer body.Close()
	dir, err := os.MkdirTemp(s.store.downloads, "")
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, func() error { return os.RemoveAll(dir) })
	file := dir + "/image.tar"
	hash := sha256.New()
	if err := save(file, io.TeeReader(body, hash), s.store.limits.ArchiveBytes); err != nil {
		return nil, fmt.Errorf("download image %s: %w", s.code.Object, err)
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != s.code.SHA256 {
		return nil, function.Errorf(function.InvalidImage, "the image is damaged: its SHA-256 is %s, not %s", got, s.code.SHA256)
	}
	img, err := openArchive(file, dir+"/layout", s.store.limits.ArchiveBytes)
	if err != nil {
		return nil, blame(ctx, err)
	}
	return img, nil
}

// save writes what is read to a new file, up to a limit.
func save(file string, r io.Reader, maxBytes int64) (err error) {
	out, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	n, err := io.Copy(out, io.LimitReader(r, maxBytes+1))
	if err != nil {
		return err
	}
	if n > maxBytes {
		return function.Errorf(function.InvalidImage, "the image is larger than %d bytes", maxBytes)
	}
	return nil
}

// OpenArchive opens an image that is on disk: what `docker save` writes, an
// OCI layout as a tar file (both may be gzipped), or an OCI layout's directory.
// temp is a directory that need not exist, in which the image keeps files: the
// caller removes it afterwards.
func OpenArchive(file, temp string) (v1.Image, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	if info.IsDir() {
		return openLayout(file)
	}
	return openArchive(file, temp, Limits{}.withDefaults().ArchiveBytes)
}

func openArchive(file, temp string, maxBytes int64) (v1.Image, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	defer f.Close()
	buffered := bufio.NewReader(f)
	if magic, _ := buffered.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		plain, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, fmt.Errorf("open image: %w", err)
		}
		if err := os.MkdirAll(temp, 0o700); err != nil {
			return nil, fmt.Errorf("open image: %w", err)
		}
		unzipped := temp + "/unzipped.tar"
		if err := save(unzipped, plain, maxBytes); err != nil {
			return nil, fmt.Errorf("open image: %w", err)
		}
		return openTar(unzipped, temp+"/layout")
	}
	return openTar(file, temp)
}

// openTar opens an image in a tar file.
func openTar(file, temp string) (v1.Image, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	defer f.Close()
	isLayout := false
	archive := tar.NewReader(f)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("open image: this is no tar file: %w", err)
		}
		switch path.Clean(header.Name) {
		case "manifest.json":
			img, err := tarball.ImageFromPath(file, nil)
			if err != nil {
				return nil, fmt.Errorf("open image: %w", err)
			}
			return img, nil
		case "oci-layout":
			isLayout = true
		}
	}
	if !isLayout {
		return nil, errors.New("open image: neither manifest.json (docker save) nor oci-layout (OCI) is in the tar file")
	}
	if err := extractLayout(file, temp); err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	return openLayout(temp)
}

// extractLayout takes the files of an OCI layout, and nothing else, out of a
// tar file.
func extractLayout(file, dir string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	archive := tar.NewReader(f)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean(header.Name)
		if header.Typeflag != tar.TypeReg || name != "index.json" && name != "oci-layout" && !strings.HasPrefix(name, "blobs/") || !fs.ValidPath(name) {
			continue
		}
		if err := root.MkdirAll(path.Dir(name), 0o700); err != nil {
			return err
		}
		out, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, archive)
		if err := errors.Join(err, out.Close()); err != nil {
			return err
		}
	}
}

// openLayout opens the image for this machine in the directory of an OCI
// layout.
func openLayout(dir string) (v1.Image, error) {
	p, err := layout.FromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("open OCI layout: %w", err)
	}
	index, err := p.ImageIndex()
	if err != nil {
		return nil, fmt.Errorf("open OCI layout: %w", err)
	}
	img, err := choose(index, 0)
	if err != nil {
		return nil, fmt.Errorf("open OCI layout: %w", err)
	}
	return img, nil
}

// maxIndexDepth bounds how deep indexes may lie in each other.
const maxIndexDepth = 4

// choose finds the one image for this machine in an index.
func choose(index v1.ImageIndex, depth int) (v1.Image, error) {
	if depth > maxIndexDepth {
		return nil, errors.New("its indexes lie too deep in each other")
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var fitting []v1.Descriptor
	for _, d := range manifest.Manifests {
		// Attestations are manifests of a platform that does not exist.
		if p := d.Platform; (d.MediaType.IsImage() || d.MediaType.IsIndex()) &&
			(p == nil || p.OS == "linux" && p.Architecture == runtime.GOARCH) {
			fitting = append(fitting, d)
		}
	}
	switch {
	case len(fitting) == 0:
		return nil, fmt.Errorf("none of its %d images is for linux/%s", len(manifest.Manifests), runtime.GOARCH)
	case len(fitting) > 1:
		return nil, fmt.Errorf("%d of its images are for linux/%s: keep the one that is meant", len(fitting), runtime.GOARCH)
	}
	if fitting[0].MediaType.IsIndex() {
		inner, err := index.ImageIndex(fitting[0].Digest)
		if err != nil {
			return nil, err
		}
		return choose(inner, depth+1)
	}
	img, err := index.Image(fitting[0].Digest)
	if err != nil {
		return nil, err
	}
	raw, err := img.RawManifest()
	if err != nil {
		return nil, err
	}
	if got := sha256.Sum256(raw); hex.EncodeToString(got[:]) != fitting[0].Digest.Hex {
		return nil, errors.New("its manifest is damaged: the digest does not match")
	}
	return img, nil
}
