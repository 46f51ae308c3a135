package main

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"github.com/volley-run/volley/internal/sigv4"
)

// loadImage decides whether --image names something in a registry or on this
// machine, which is uploaded.
func (d *deployment) loadImage(ctx context.Context) error {
	info, err := os.Stat(d.o.image)
	if errors.Is(err, fs.ErrNotExist) {
		d.imageURI = d.o.image
		return nil
	}
	if err != nil {
		return withStatus(exitInput, fmt.Errorf("read image: %w", err))
	}
	var body io.ReadCloser
	if info.IsDir() {
		body = tarOf(d.o.image)
	} else if body, err = os.Open(d.o.image); err != nil {
		return withStatus(exitInput, fmt.Errorf("read image: %w", err))
	}
	defer body.Close()
	resp, err := d.client.send(ctx, http.MethodPost, "/volley/v1/uploads", nil, body, sigv4.UnsignedPayload)
	if err != nil {
		return fmt.Errorf("upload %s: %w", d.o.image, err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&d.upload); err != nil {
		return d.client.failed(fmt.Errorf("upload %s: read the answer: %w", d.o.image, err))
	}
	return nil
}

// tarOf packs a directory while it is read. The caller closes the reader.
func tarOf(dir string) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		t := tar.NewWriter(w)
		err := t.AddFS(os.DirFS(filepath.Clean(dir)))
		if closeErr := t.Close(); err == nil {
			err = closeErr
		}
		w.CloseWithError(err)
	}()
	return r
}
