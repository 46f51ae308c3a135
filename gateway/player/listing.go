package player

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

// The names that a run gives to its files.
const (
	manifestFile   = "manifest.mpd"
	playlistFile   = "playlist.m3u8"
	joinedFile     = "output.mp4"
	imageListFile  = "images.json"
	imageDir       = "images"
	thumbnailsFile = "thumbnails.vtt"
	resultFile     = "result.json"
	workDir        = ".volley"
	outputPrefix   = "output_"

	// maxTextBytes bounds what is read of a JSON file of the directory.
	maxTextBytes = 32 << 20
)

// State says how far the run that writes a directory has come.
type State string

// The states of a run.
const (
	// StateRunning: more is to come.
	StateRunning State = "running"
	// StateFinished: everything is there.
	StateFinished State = "finished"
	// StateStopped: the run ended before everything was there.
	StateStopped State = "stopped"
)

// Listing is what GET /api/result answers: what is in a result directory.
type Listing struct {
	// Name is the last element of the directory's path.
	Name  string `json:"name"`
	State State  `json:"state"`
	// IdleSeconds is the time since a manifest, image list or result changed.
	IdleSeconds float64  `json:"idle_seconds"`
	Outputs     []Output `json:"outputs"`
	// Result is result.json as it is, absent until the run has ended.
	Result json.RawMessage `json:"result,omitempty"`
}

// Output is one output of a pipeline.
type Output struct {
	Name string `json:"name"`
	// Path goes before the names of its files: empty, or "output_1/".
	Path string `json:"path"`
	// Formats holds those of "dash", "hls", "mp4", "images" that are there.
	Formats []string `json:"formats"`
	// Complete is false while the DASH manifest may still grow.
	Complete bool    `json:"complete"`
	Images   []Image `json:"images,omitempty"`
	// Thumbnails is the name of a WebVTT file of thumbnails, or empty.
	Thumbnails string `json:"thumbnails,omitempty"`
	// Files are offered for download; segments and images are left out.
	Files []File `json:"files"`
}

// Has reports whether the output is there in format.
func (o Output) Has(format string) bool { return slices.Contains(o.Formats, format) }

// Image is one image of an output.
type Image struct {
	File string `json:"file"`
	// Time is the image's place in the input, in seconds; nil if not known.
	Time *float64 `json:"time,omitempty"`
}

// File is one file of an output.
type File struct {
	Name      string `json:"name"`
	SizeBytes int64  `json:"size_bytes"`
}

// list reads what is in dir now. Files may appear and grow meanwhile: one that
// is half there counts as absent.
func list(dir fs.FS, name string, now time.Time) (Listing, error) {
	entries, err := fs.ReadDir(dir, ".")
	if err != nil {
		return Listing{}, fmt.Errorf("list result directory: %w", err)
	}
	var newest time.Time
	seen := func(t time.Time) {
		if t.After(newest) {
			newest = t
		}
	}
	working := false
	indexes := []int{0}
	for _, e := range entries {
		if e.Name() == workDir && e.IsDir() {
			working = true
		}
		digits, ok := strings.CutPrefix(e.Name(), outputPrefix)
		if n, err := strconv.Atoi(digits); ok && err == nil && n > 0 && strconv.Itoa(n) == digits && e.IsDir() {
			indexes = append(indexes, n)
		}
	}
	sort.Ints(indexes)

	l := Listing{Name: name, State: StateFinished, Outputs: []Output{}}
	growing := false
	for _, i := range indexes {
		o := listOutput(dir, i, seen)
		if len(o.Formats) == 0 {
			continue
		}
		growing = growing || !o.Complete
		l.Outputs = append(l.Outputs, o)
	}
	var result struct {
		Complete *bool `json:"complete"`
	}
	raw, err := readText(dir, resultFile, seen)
	switch {
	case err == nil && json.Unmarshal(raw, &result) == nil:
		l.Result = raw
		if result.Complete != nil && !*result.Complete {
			l.State = StateStopped
		}
	case growing, working && len(l.Outputs) == 0:
		l.State = StateRunning
	}
	if l.State == StateFinished && l.Result != nil {
		for i := range l.Outputs {
			l.Outputs[i].Complete = true
		}
	}
	if !newest.IsZero() {
		l.IdleSeconds = max(0, now.Sub(newest).Seconds())
	}
	if len(l.Outputs) == 0 && l.Result == nil && !working {
		return l, ErrNoResult
	}
	return l, nil
}

// listOutput reads the output with the given index; one without a format is
// not there.
func listOutput(dir fs.FS, index int, seen func(time.Time)) Output {
	o := Output{Name: outputPrefix + strconv.Itoa(index), Complete: true, Files: []File{}}
	if index > 0 {
		o.Path = o.Name + "/"
	}
	add := func(name string) bool {
		info, err := fs.Stat(dir, o.Path+name)
		if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
			return false
		}
		seen(info.ModTime())
		o.Files = append(o.Files, File{Name: name, SizeBytes: info.Size()})
		return true
	}
	if add(joinedFile) {
		o.Formats = append(o.Formats, "mp4")
	}
	if add(manifestFile) {
		o.Formats = append([]string{"dash"}, o.Formats...)
		o.Complete = !isDynamic(dir, o.Path+manifestFile)
	}
	if add(playlistFile) {
		at := 0
		if o.Has("dash") {
			at = 1
		}
		o.Formats = slices.Insert(o.Formats, at, "hls")
	}
	add(imageListFile)
	if o.Images = listImages(dir, o.Path, seen); len(o.Images) > 0 {
		o.Formats = append(o.Formats, "images")
	}
	if add(thumbnailsFile) {
		o.Thumbnails = thumbnailsFile
	}
	if index == 0 {
		add(resultFile)
	}
	return o
}

// listImages takes the images from the list that the run wrote, or, where that
// is not there, from the directory of images.
func listImages(dir fs.FS, prefix string, seen func(time.Time)) []Image {
	if raw, err := readText(dir, prefix+imageListFile, seen); err == nil {
		var images []Image
		if json.Unmarshal(raw, &images) == nil {
			return slices.DeleteFunc(images, func(i Image) bool { return !servable(prefix + i.File) })
		}
	}
	entries, err := fs.ReadDir(dir, prefix+imageDir)
	if err != nil {
		return nil
	}
	var images []Image
	for _, e := range entries {
		if name := path.Join(imageDir, e.Name()); e.Type().IsRegular() && servable(name) && strings.HasPrefix(contentType(name), "image/") {
			images = append(images, Image{File: name})
		}
	}
	return images
}

// isDynamic reports whether the DASH manifest may still grow. One that cannot
// be read is left to the player to complain about.
func isDynamic(dir fs.FS, name string) bool {
	f, err := dir.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	d := xml.NewDecoder(io.LimitReader(f, maxTextBytes))
	for {
		token, err := d.Token()
		if err != nil {
			return false
		}
		start, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		for _, a := range start.Attr {
			if a.Name.Local == "type" {
				return a.Value == "dynamic"
			}
		}
		return false
	}
}

// readText reads a small file and notes when it changed.
func readText(dir fs.FS, name string, seen func(time.Time)) ([]byte, error) {
	// Stat first: opening a FIFO would wait for its other end.
	if info, err := fs.Stat(dir, name); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fs.ErrNotExist
	}
	f, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxTextBytes+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxTextBytes {
		return nil, errors.New(name + " is too large")
	}
	seen(info.ModTime())
	return raw, nil
}
