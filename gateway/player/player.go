// Package player serves one result directory of "volley run" over HTTP: the
// page that plays it, and the files themselves for any other player.
package player

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/volley-run/volley/web/ui"
)

// ErrNoResult means that the directory holds nothing that a run has made.
var ErrNoResult = errors.New("no result in directory")

// contentSecurityPolicy lets the page reach nothing but its own origin. Media
// Source Extensions play from blob: addresses.
const contentSecurityPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; " +
	"media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"

// Handler serves the page at "/" (and without script at "/plain"), what the
// page is made of below "/assets/", the files of the directory below "/media/",
// and a Listing at "/api/result". All its addresses are relative, so it also
// works below a prefix (http.StripPrefix). It may be used concurrently.
type Handler struct {
	root  *os.Root
	name  string
	log   *slog.Logger
	built bool
	page  asset
	plain *template.Template
	// assets are keyed by their name below /assets/.
	assets map[string]asset
	mux    *http.ServeMux
}

type asset struct {
	content []byte
	etag    string
}

// New returns a handler for the result directory dir, which may belong to a run
// that is still going on. It returns an error that wraps ErrNoResult when dir
// holds nothing of a run, and one that wraps fs.ErrNotExist when there is no
// such directory. log may be nil. The caller closes the handler after the last
// request.
func New(dir string, log *slog.Logger) (*Handler, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open result directory %s: %w", dir, err)
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w %s: %w; give the directory that \"volley run\" wrote (its -o)", ErrNoResult, dir, fs.ErrNotExist)
		}
		return nil, fmt.Errorf("open result directory %s: %w", dir, err)
	}
	h := &Handler{root: root, name: filepath.Base(abs), log: log, built: ui.Built(), assets: map[string]asset{}}
	if err := h.prepare(dir); err != nil {
		root.Close()
		return nil, err
	}
	return h, nil
}

func (h *Handler) prepare(dir string) error {
	if _, err := list(h.root.FS(), h.name, time.Now()); err != nil {
		if errors.Is(err, ErrNoResult) {
			return fmt.Errorf("%w %s: found no %s, %s, %s, %s or %s; give the directory that \"volley run\" wrote (its -o), or start a run first",
				ErrNoResult, dir, manifestFile, playlistFile, joinedFile, imageListFile, resultFile)
		}
		return err
	}
	if err := h.loadAssets(ui.Assets()); err != nil {
		return fmt.Errorf("load player page: %w", err)
	}
	h.mux = http.NewServeMux()
	h.mux.HandleFunc("GET /{$}", h.servePage)
	h.mux.HandleFunc("GET /plain", h.servePlain)
	h.mux.HandleFunc("GET /assets/{name...}", h.serveAsset)
	h.mux.HandleFunc("GET /api/result", h.serveListing)
	h.mux.HandleFunc("GET /media/{name...}", h.serveMedia)
	h.mux.HandleFunc("OPTIONS /media/{name...}", h.preflightMedia)
	return nil
}

// Close lets go of the directory; requests after it fail. It may be called
// more than once.
func (h *Handler) Close() error { return h.root.Close() }

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Security-Policy", contentSecurityPolicy)
	w.Header().Set("Referrer-Policy", "no-referrer")
	h.mux.ServeHTTP(w, r)
}

func (h *Handler) loadAssets(files fs.FS) error {
	for _, dir := range []string{"static", "dist"} {
		entries, err := fs.ReadDir(files, dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.IsDir() || !servable(e.Name()) {
				continue
			}
			content, err := fs.ReadFile(files, path.Join(dir, e.Name()))
			if err != nil {
				return err
			}
			sum := sha256.Sum256(content)
			h.assets[e.Name()] = asset{content: content, etag: `"` + hex.EncodeToString(sum[:12]) + `"`}
		}
	}
	h.page = h.assets["index.html"]
	delete(h.assets, "index.html")
	var err error
	h.plain, err = template.New("plain").Parse(string(h.assets["plain.html"].content))
	delete(h.assets, "plain.html")
	return err
}

func (h *Handler) servePage(w http.ResponseWriter, r *http.Request) {
	if !h.built {
		h.servePlain(w, r)
		return
	}
	serveBytes(w, r, "index.html", h.page)
}

// servePlain serves a page that plays with what the browser has.
func (h *Handler) servePlain(w http.ResponseWriter, r *http.Request) {
	listing, err := h.listing()
	if err != nil {
		h.fail(w, r, err)
		return
	}
	var named struct {
		Pipeline string `json:"pipeline"`
	}
	title := h.name
	if json.Unmarshal(listing.Result, &named) == nil && named.Pipeline != "" {
		title = named.Pipeline
	}
	var page bytes.Buffer
	if err := h.plain.Execute(&page, map[string]any{"Title": title, "Built": h.built, "Listing": listing}); err != nil {
		h.fail(w, r, fmt.Errorf("write plain page: %w", err))
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	http.ServeContent(w, r, "plain.html", time.Time{}, bytes.NewReader(page.Bytes()))
}

func (h *Handler) serveAsset(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	a, ok := h.assets[name]
	if !ok {
		http.NotFound(w, r)
		return
	}
	serveBytes(w, r, name, a)
}

func serveBytes(w http.ResponseWriter, r *http.Request, name string, a asset) {
	w.Header().Set("Content-Type", assetType(name))
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("ETag", a.etag)
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(a.content))
}

func (h *Handler) listing() (Listing, error) {
	l, err := list(h.root.FS(), h.name, time.Now())
	if errors.Is(err, ErrNoResult) {
		// It was there when the handler was made: a new run may be clearing up.
		l.State, err = StateRunning, nil
	}
	return l, err
}

func (h *Handler) serveListing(w http.ResponseWriter, r *http.Request) {
	l, err := h.listing()
	if err != nil {
		h.fail(w, r, err)
		return
	}
	body, err := json.Marshal(l)
	if err != nil {
		h.fail(w, r, fmt.Errorf("write listing: %w", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	h.log.Error("serve result", "path", r.URL.Path, "error", err)
	http.Error(w, "The result directory cannot be read: see the log of volley serve.", http.StatusInternalServerError)
}
