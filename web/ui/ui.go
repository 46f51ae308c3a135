// Package ui holds the player page: the static files, and the script bundle
// that "make ui" builds from src/ with esbuild.
package ui

import (
	"embed"
	"io/fs"
)

//go:embed all:dist all:static
var files embed.FS

// Script is the name, in Assets, of the script that the page starts with.
const Script = "dist/app.js"

// Assets returns the embedded files: static/index.html (the page),
// static/plain.html (an html/template that needs no script), static/style.css,
// and the bundle below dist/. The bundle is missing when Built is false.
func Assets() fs.FS { return files }

// Built reports whether the script bundle was there when the binary was built.
// Without it only static/plain.html is of use.
func Built() bool {
	info, err := fs.Stat(files, Script)
	return err == nil && info.Size() > 0
}
