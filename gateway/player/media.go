package player

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"
)

// contentType is the media type for a file by its name; what a browser might
// run, or is not known, is plain bytes.
func contentType(name string) string {
	switch strings.ToLower(path.Ext(name)) {
	case ".mpd":
		return "application/dash+xml"
	case ".m3u8":
		return "application/vnd.apple.mpegurl"
	case ".m4s":
		return "video/iso.segment"
	case ".mp4":
		return "video/mp4"
	case ".m4a":
		return "audio/mp4"
	case ".vtt":
		return "text/vtt; charset=utf-8"
	case ".json":
		return "application/json"
	case ".jpg", ".jpeg":
		return "image/jpeg"
	case ".png":
		return "image/png"
	case ".webp":
		return "image/webp"
	case ".txt":
		return "text/plain; charset=utf-8"
	}
	return "application/octet-stream"
}

// assetType is contentType for the page's own files.
func assetType(name string) string {
	switch path.Ext(name) {
	case ".html":
		return "text/html; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	}
	return contentType(name)
}

// servable reports whether name is a clean path without a hidden element.
func servable(name string) bool {
	if name == "." || !fs.ValidPath(name) {
		return false
	}
	for element := range strings.SplitSeq(name, "/") {
		if strings.HasPrefix(element, ".") {
			return false
		}
	}
	return true
}

// changes reports whether the file is rewritten while the run goes on.
func changes(name string) bool {
	switch path.Ext(name) {
	case ".mpd", ".m3u8", ".json", ".vtt":
		return true
	}
	return false
}

func mediaHeaders(w http.ResponseWriter) {
	// The results are for other players too, wherever their page comes from.
	w.Header().Set("Access-Control-Allow-Origin", "*")
	w.Header().Set("Access-Control-Expose-Headers", "Accept-Ranges, Content-Length, Content-Range, ETag")
	w.Header().Set("Cross-Origin-Resource-Policy", "cross-origin")
}

func (h *Handler) preflightMedia(w http.ResponseWriter, _ *http.Request) {
	mediaHeaders(w)
	w.Header().Set("Access-Control-Allow-Methods", "GET, HEAD")
	w.Header().Set("Access-Control-Allow-Headers", "Range, If-None-Match, If-Range")
	w.Header().Set("Access-Control-Max-Age", "86400")
	w.WriteHeader(http.StatusNoContent)
}

// serveMedia serves a regular file of the directory. Hidden files, directories,
// symbolic links and devices are not there.
func (h *Handler) serveMedia(w http.ResponseWriter, r *http.Request) {
	mediaHeaders(w)
	name := r.PathValue("name")
	if !servable(name) {
		http.NotFound(w, r)
		return
	}
	if err := h.plainFile(name); err != nil {
		h.refuse(w, r, name, err)
		return
	}
	f, err := h.root.Open(name)
	if err != nil {
		h.refuse(w, r, name, err)
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		h.refuse(w, r, name, err)
		return
	}
	kind := contentType(name)
	w.Header().Set("Content-Type", kind)
	if kind == "application/octet-stream" {
		w.Header().Set("Content-Disposition", "attachment")
	}
	var modified time.Time
	if changes(name) {
		w.Header().Set("Cache-Control", "no-store")
	} else {
		// Asked again each time: another run may write the same names.
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("ETag", fmt.Sprintf(`"%x-%x"`, info.ModTime().UnixNano(), info.Size()))
		modified = info.ModTime()
	}
	http.ServeContent(w, r, path.Base(name), modified, f)
}

// plainFile returns nil if name is a regular file reached through directories
// only. os.Root keeps links from leading outside, but one inside may lead to a
// hidden file; and to open a FIFO would wait for its other end.
func (h *Handler) plainFile(name string) error {
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '/' {
			continue
		}
		info, err := h.root.Lstat(name[:i])
		if err != nil {
			return err
		}
		if i < len(name) && !info.IsDir() || i == len(name) && !info.Mode().IsRegular() {
			return fs.ErrNotExist
		}
	}
	return nil
}

func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, name string, err error) {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		h.log.Debug("no such file in result", "file", name)
		http.NotFound(w, r)
	case errors.Is(err, fs.ErrPermission):
		h.log.Warn("read result file", "file", name, "error", err)
		http.Error(w, "volley serve may not read this file: give its user the right to, or serve as another user.", http.StatusForbidden)
	default:
		// An odd name or a path through a file is no fault of the server.
		h.log.Debug("read result file", "file", name, "error", err)
		http.NotFound(w, r)
	}
}
