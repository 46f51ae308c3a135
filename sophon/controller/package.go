package controller

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/wire"
)

// Package is a function's code as a user hands it in: exactly one of the
// fields is set.
type Package struct {
	// Zip is a zip file.
	Zip io.Reader
	// ImageTar is an image as a tar, such as `docker save` writes.
	ImageTar io.Reader
	// ImageRef names an image in a registry.
	ImageRef string
}

// store brings code to where invokers find it and fills in f.Code. Until
// release is called, which the caller must do, nobody removes it.
func (r *registry) store(ctx context.Context, f *function.Function, p Package) (release func(), err error) {
	source, limit := p.Zip, r.c.cfg.Limits.PackageBytes
	switch {
	case f.PackageType == function.Zip && p.Zip != nil:
	case f.PackageType == function.Image && p.ImageTar != nil:
		source, limit = p.ImageTar, r.c.cfg.Limits.ImageBytes
	case f.PackageType == function.Image && p.ImageRef != "":
		if f.Code, err = r.resolve(ctx, p.ImageRef); err != nil {
			return nil, err
		}
		return func() {}, nil
	default:
		return nil, &function.Error{Code: function.InvalidParameter, Field: "code",
			Message: fmt.Sprintf("a function of package type %s needs code of that kind", f.PackageType)}
	}
	spool, err := os.CreateTemp(r.c.cfg.TempDir, "volley-package-")
	if err != nil {
		return nil, function.Errorf(function.Internal, "make a temporary file: %v", err)
	}
	defer func() {
		_ = spool.Close() // only read from now on
		_ = os.Remove(spool.Name())
	}()
	sum, size, err := r.spool(spool, source, limit)
	if err != nil {
		return nil, err
	}
	if f.PackageType == function.Zip {
		if err := checkZip(spool, size, r.c.cfg.Limits.UnpackedBytes); err != nil {
			return nil, err
		}
	}
	r.code.RLock()
	if err := r.upload(ctx, sum, spool); err != nil {
		r.code.RUnlock()
		return nil, err
	}
	f.Code = function.Code{Object: sum, SHA256: sum, SizeBytes: size}
	return r.code.RUnlock, nil
}

// resolve pins an image reference.
func (r *registry) resolve(ctx context.Context, ref string) (function.Code, error) {
	if r.c.cfg.Images == nil {
		return function.Code{}, function.Errorf(function.InvalidImage, "this controller cannot look up images: upload the image as a tar")
	}
	resolved, sum, err := r.c.cfg.Images.Resolve(ctx, ref)
	if err != nil {
		var known *function.Error
		if errors.As(err, &known) {
			return function.Code{}, known
		}
		return function.Code{}, function.Errorf(function.InvalidImage, "look up image %s: %v", ref, err)
	}
	return function.Code{ImageRef: ref, ResolvedRef: resolved, SHA256: sum}, nil
}

// spool copies a package to a file, and returns its digest and size.
func (r *registry) spool(to io.Writer, from io.Reader, limit int64) (sum string, size int64, err error) {
	hash := sha256.New()
	size, err = io.Copy(io.MultiWriter(to, hash), io.LimitReader(from, limit+1))
	if err != nil {
		return "", 0, function.Errorf(function.Internal, "receive the package: %v", err)
	}
	if size > limit {
		return "", 0, function.Errorf(function.TooLarge, "the package has more than %d bytes: make it smaller", limit)
	}
	return hex.EncodeToString(hash.Sum(nil)), size, nil
}

func (r *registry) upload(ctx context.Context, sum string, spool *os.File) error {
	have, err := r.objects.Get(ctx, sum)
	if err == nil {
		return have.Close()
	}
	if !errors.Is(err, bus.ErrNotFound) {
		return busError("look for package "+sum, err)
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return function.Errorf(function.Internal, "read the package again: %v", err)
	}
	if _, err := r.objects.Put(ctx, sum, spool); err != nil {
		return busError("store package "+sum, err)
	}
	return nil
}

// checkZip refuses what could not be unpacked safely.
func checkZip(file io.ReaderAt, size, limit int64) error {
	z, err := zip.NewReader(file, size)
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return function.Errorf(function.InvalidCode, "the package is no zip file: %v", err)
	}
	if len(z.File) == 0 {
		return function.Errorf(function.InvalidCode, "the package is empty: put the function's files into it")
	}
	var total uint64
	for _, f := range z.File {
		clean := path.Clean(strings.ReplaceAll(f.Name, `\`, "/"))
		if path.IsAbs(clean) || clean == ".." || strings.HasPrefix(clean, "../") {
			return function.Errorf(function.InvalidCode, "the package holds %q, which is outside of it: pack it again with relative names", f.Name)
		}
		total += f.UncompressedSize64
		if total > uint64(limit) || f.UncompressedSize64 > uint64(limit) {
			return function.Errorf(function.TooLarge, "the package has more than %d bytes unpacked: make it smaller", limit)
		}
	}
	return nil
}

// dropCode removes a package that no function uses any longer. Failing leaves
// it there, which does no harm.
func (r *registry) dropCode(ctx context.Context, code function.Code) {
	if code.Object == "" {
		return
	}
	r.code.Lock()
	defer r.code.Unlock()
	keys, err := r.kv.Keys(ctx)
	if err != nil {
		r.c.log.Warn("cannot tell whether a package is still used", "sha256", code.SHA256, "error", err)
		return
	}
	for _, key := range keys {
		e, err := r.kv.Get(ctx, key)
		if errors.Is(err, bus.ErrNotFound) {
			continue
		}
		if err != nil || bytes.Contains(e.Value, []byte(`"`+code.Object+`"`)) {
			return
		}
	}
	if err := r.objects.Delete(ctx, code.Object); err != nil {
		r.c.log.Warn("cannot remove a package that is not used", "sha256", code.SHA256, "error", err)
	}
}

// Code opens a function's package: its zip file, or the tar of its image. The
// caller closes it. An image from a registry gives NotFound.
func (c *Controller) Code(ctx context.Context, name string) (io.ReadCloser, error) {
	f, err := c.GetFunction(ctx, name)
	if err != nil {
		return nil, err
	}
	if f.Code.Object == "" {
		return nil, function.Errorf(function.NotFound, "function %s has no package: it runs image %s", name, f.Code.ImageRef)
	}
	r, err := c.registry.objects.Get(ctx, f.Code.Object)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, function.Errorf(function.NotFound, "the package of function %s is gone from %s: upload it again", name, wire.CodeBucket)
	}
	if err != nil {
		return nil, busError("open the package of function "+name, err)
	}
	return r, nil
}
