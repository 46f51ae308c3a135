package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox/image"
)

func (s *Server) getInfo(w http.ResponseWriter, r *http.Request) error {
	version, err := s.cfg.Service.Version(r.Context())
	if err != nil {
		return err
	}
	info := Info{Version: "v1", VMM: version, Mode: string(s.cfg.Mode)}
	for _, m := range faasnap.Modes() {
		info.Modes = append(info.Modes, string(m))
	}
	return s.answer(w, info)
}

func functionOf(f *faasnap.Function) Function {
	return Function{
		Name: f.Name, PackageType: string(f.PackageType), Runtime: f.Runtime, Handler: f.Handler, ImageRef: f.Code.ImageRef,
		Environment: f.Environment, MemoryMB: f.MemoryMB, TimeoutSeconds: int(f.Timeout / time.Second),
		GuestMemoryMB: int(f.GuestMemoryBytes >> 20), Created: f.Created,
		Kernel: f.Image.Kernel, Initrd: f.Image.Initrd, Drives: f.Image.Drives(),
	}
}

func (s *Server) listFunctions(w http.ResponseWriter, _ *http.Request) error {
	functions, err := s.cfg.Service.Functions()
	if err != nil {
		return err
	}
	list := Functions{Functions: []Function{}}
	for _, f := range functions {
		list.Functions = append(list.Functions, functionOf(f))
	}
	return s.answer(w, list)
}

func (s *Server) getFunction(w http.ResponseWriter, r *http.Request) error {
	f, err := s.cfg.Service.Function(r.PathValue("name"))
	if err != nil {
		return err
	}
	return s.answer(w, functionOf(f))
}

func (s *Server) deleteFunction(w http.ResponseWriter, r *http.Request) error {
	if err := s.cfg.Service.RemoveFunction(r.PathValue("name")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) putFunction(w http.ResponseWriter, r *http.Request) error {
	var req BuildRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	f, err := req.function(r.PathValue("name"))
	if err != nil {
		return err
	}
	return s.long(w, r, func(step func(string)) (Event, error) {
		if err := s.build(r.Context(), f, req, step); err != nil {
			return Event{}, err
		}
		built := functionOf(f)
		return Event{Function: &built}, nil
	})
}

// function returns the function without what has to be built.
func (b *BuildRequest) function(name string) (*faasnap.Function, error) {
	if (b.From == "") == (b.Image == "") {
		return nil, invalid(errors.New("name either a directory (from) or a container image (image)"))
	}
	f := &faasnap.Function{
		Function: function.Function{
			Name: name, PackageType: function.Zip, Revision: uuid.NewString(), Runtime: b.Runtime, Handler: b.Handler,
			Environment: b.Environment, MemoryMB: b.MemoryMB, Timeout: time.Duration(b.TimeoutSeconds) * time.Second, Created: time.Now(),
		},
		GuestMemoryBytes: int64(b.GuestMemoryMB) << 20, Created: time.Now(),
	}
	if b.Image != "" {
		if len(b.Packages) > 0 {
			return nil, invalid(errors.New("an image has its own packages: leave them out"))
		}
		f.PackageType = function.Image
		f.Code.ImageRef = b.Image
	} else if !filepath.IsAbs(b.From) {
		return nil, invalid(fmt.Errorf("the directory %s must be an absolute path on the host", b.From))
	} else if info, err := os.Stat(b.From); err != nil || !info.IsDir() {
		return nil, invalid(fmt.Errorf("the directory %s is not there on the host", b.From))
	}
	f.Modified = f.Function.Created
	f.SetDefaults()
	if err := f.Validate(); err != nil {
		return nil, invalid(err)
	}
	if mb := b.GuestMemoryMB; mb != 0 && (mb < f.MemoryMB || mb%2 != 0 || mb > maxGuestMB) {
		return nil, invalid(fmt.Errorf("guestMemoryMB %d: use an even number from the function's memory (%d) to %d", mb, f.MemoryMB, maxGuestMB))
	}
	return f, nil
}

// maxGuestMB bounds the memory of a virtual machine: 1 TiB.
const maxGuestMB = 1 << 20

func (s *Server) build(ctx context.Context, f *faasnap.Function, req BuildRequest, step func(string)) error {
	if f.PackageType == function.Zip {
		step("build")
		return s.cfg.Service.BuildZip(ctx, f, req.From, req.Packages...)
	}
	if s.cfg.Images == "" {
		return invalid(errors.New("container images are not taken here"))
	}
	step("fetch image")
	s.building.Lock()
	defer s.building.Unlock()
	// Only one process can have it open, so it is for as short as can be.
	store, err := image.Open(image.Config{Dir: s.cfg.Images, Objects: archives{}})
	if err != nil {
		return err
	}
	err = s.buildImage(ctx, f, store, step)
	return errors.Join(err, store.Close())
}

func (s *Server) buildImage(ctx context.Context, f *faasnap.Function, store *image.Store, step func(string)) error {
	ref := f.Code.ImageRef
	var err error
	if filepath.IsAbs(ref) {
		f.Code.Object = ref
		f.Code.SHA256, f.Code.SizeBytes, err = sumFile(ref)
	} else {
		var resolved image.Resolved
		resolved, err = image.Registries{}.Resolve(ctx, ref)
		f.Code.ResolvedRef, f.Code.SHA256, f.Code.SizeBytes = resolved.Ref, resolved.SHA256, resolved.SizeBytes
	}
	if err != nil {
		return err
	}
	img, err := store.Open(ctx, &f.Function)
	if err != nil {
		return err
	}
	defer img.Release()
	step("build")
	return s.cfg.Service.BuildImage(ctx, f, img)
}

// archives opens images that are files on the host.
type archives struct{}

// Get implements image.Objects.
func (archives) Get(_ context.Context, key string) (io.ReadCloser, error) { return os.Open(key) }

func sumFile(path string) (sum string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, invalid(fmt.Errorf("read image: %w", err))
	}
	defer f.Close()
	h := sha256.New()
	if size, err = io.Copy(h, f); err != nil {
		return "", 0, invalid(fmt.Errorf("read image: %w", err))
	}
	return hex.EncodeToString(h.Sum(nil)), size, nil
}
