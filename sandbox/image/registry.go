package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"runtime"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/volley-run/volley/function"
)

// Resolved is a reference that stands for one image for good.
type Resolved struct {
	// Ref is the reference with the digest in place of the tag.
	Ref string
	// SHA256 is the digest in hex.
	SHA256 string
	// SizeBytes is the size of the image for this machine as it is fetched.
	SizeBytes int64
}

// Registries finds images in registries. It may be used concurrently.
type Registries struct {
	// Keychain has the credentials: that of Docker's configuration file if nil.
	Keychain authn.Keychain
	// Limits bound what an image may be like.
	Limits Limits
}

// Resolve asks the registry what a reference, such as
// "registry.example/team/app:v2", stands for now, and whether this machine can
// run it. The error is a *function.Error of code InvalidImage, or wraps that
// of the context.
func (r Registries) Resolve(ctx context.Context, ref string) (Resolved, error) {
	parsed, err := parse(ref)
	if err != nil {
		return Resolved{}, err
	}
	desc, err := remote.Get(parsed, r.options(ctx)...)
	if err != nil {
		return Resolved{}, pullError(ctx, ref, err)
	}
	img, err := desc.Image()
	if err != nil {
		return Resolved{}, pullError(ctx, ref, err)
	}
	if _, err := checkImage(img, r.Limits.withDefaults()); err != nil {
		return Resolved{}, blame(ctx, err)
	}
	manifest, err := img.Manifest()
	if err != nil {
		return Resolved{}, pullError(ctx, ref, err)
	}
	size := manifest.Config.Size
	for _, l := range manifest.Layers {
		size += l.Size
	}
	return Resolved{Ref: parsed.Context().Digest(desc.Digest.String()).Name(), SHA256: desc.Digest.Hex, SizeBytes: size}, nil
}

// pull opens an image in a registry. Manifest and layers are verified against
// their digests as they are read.
func (s *Store) pull(ctx context.Context, code function.Code) (v1.Image, error) {
	parsed, err := parse(code.ResolvedRef)
	if err != nil {
		return nil, err
	}
	digest, pinned := parsed.(name.Digest)
	if !pinned || digest.DigestStr() != "sha256:"+code.SHA256 {
		return nil, function.Errorf(function.InvalidImage, "the image reference %q is not pinned to its digest", code.ResolvedRef)
	}
	img, err := remote.Image(parsed, s.cfg.registries().options(ctx)...)
	if err != nil {
		return nil, pullError(ctx, code.ResolvedRef, err)
	}
	return img, nil
}

func parse(ref string) (name.Reference, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return nil, function.Errorf(function.InvalidImage, "%q is no image reference: %v", ref, err)
	}
	if !isLoopback(parsed.Context().RegistryStr()) {
		return parsed, nil
	}
	return name.ParseReference(ref, name.Insecure)
}

// isLoopback reports whether a host, perhaps with a port, is this machine.
func isLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

func (r Registries) options(ctx context.Context) []remote.Option {
	keychain := r.Keychain
	if keychain == nil {
		keychain = authn.DefaultKeychain
	}
	return []remote.Option{
		remote.WithContext(ctx),
		remote.WithAuthFromKeychain(keychain),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}),
		remote.WithTransport(encrypted{remote.DefaultTransport}),
		remote.WithUserAgent("volley"),
	}
}

// errPlain says that a registry would be spoken to without encryption.
var errPlain = errors.New("only registries on loopback may be used without TLS")

// encrypted refuses plain HTTP, except to this machine: the library falls back
// to it for private addresses.
type encrypted struct{ http.RoundTripper }

func (e encrypted) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !isLoopback(req.URL.Host) {
		return nil, fmt.Errorf("connect to %s: %w", req.URL.Host, errPlain)
	}
	return e.RoundTripper.RoundTrip(req)
}

func pullError(ctx context.Context, ref string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("pull %s: %w", ref, context.Cause(ctx))
	}
	return function.Errorf(function.InvalidImage, "cannot pull %s: %v", ref, err)
}
