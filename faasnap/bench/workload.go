package bench

import (
	"embed"
	"encoding/json"
	"fmt"
	"math"
)

//go:embed functions
var functions embed.FS

// Workload is a function of table 5.2.
type Workload struct {
	Name string
	// What it does, and what the size of its input counts.
	What, Unit string
	// A and B are the sizes of the inputs A and B; both are 0 if it has none.
	A, B int
	// Synthetic functions go over much memory, and do nothing else; figures
	// show them apart.
	Synthetic bool
	// Installs says that it needs more than Python.
	Installs bool

	// data makes what the event carries for a size and a seed. May be nil.
	data func(size int, seed uint64) (string, error)
}

// The names of the workloads that figures are about.
const (
	HelloWorld = "hello-world"
	Image      = "image"
	JSON       = "json"
	FFmpeg     = "ffmpeg"
)

// Workloads returns the functions of table 5.2 in its order. Where the thesis's
// inputs would keep a software-emulated CPU busy for long, the default sizes are
// smaller, in the same proportion of A to B.
func Workloads() []Workload {
	return []Workload{
		{Name: HelloWorld, What: "answers", Synthetic: true},
		{Name: "read-list", What: "reads every page of a list", Synthetic: true},
		{Name: "mmap", What: "writes every page of an anonymous mapping", Synthetic: true},
		{Name: Image, What: "rotates a JPEG image", Unit: "pixels", A: 240_000, B: 250_000, Installs: true, data: jpegData},
		{Name: JSON, What: "deserialises and serialises JSON", Unit: "bytes", A: 13_000, B: 148_000, data: jsonData},
		{Name: "pyaes", What: "encrypts a text by AES in Python", Unit: "bytes", A: 5000, B: 5500, Installs: true, data: textData},
		{Name: "chameleon", What: "renders an HTML table", Unit: "cells", A: 6000, B: 8000, Installs: true},
		{Name: "matmul", What: "multiplies square matrices", Unit: "rows", A: 400, B: 440, Installs: true},
		{Name: FFmpeg, What: "makes a second of 480p video gray", Unit: "frames", A: 24, B: 27, Installs: true, data: videoData},
		{Name: "compression", What: "compresses a file", Unit: "bytes", A: 13_000, B: 148_000, data: fileData},
		{Name: "recognition", What: "applies 200 MB of weights to an image", Unit: "bytes", A: 101_000, B: 103_000, Installs: true, data: noiseData},
		{Name: "pagerank", What: "ranks the vertices of a graph", Unit: "vertices", A: 18_000, B: 20_000, Installs: true},
	}
}

// Find returns the workload of a name.
func Find(name string) (Workload, bool) {
	for _, w := range Workloads() {
		if w.Name == name {
			return w, true
		}
	}
	return Workload{}, false
}

// Variable says that the workload has inputs.
func (w Workload) Variable() bool { return w.A > 0 }

// Input is what an invocation gets.
type Input struct {
	// Name is what results call it.
	Name string
	// Size is in the workload's Unit.
	Size int
	// Seed makes the content; inputs of different seeds have nothing in common.
	Seed uint64
}

// Inputs returns A and B. Those of a function without inputs are the same.
func (w Workload) Inputs() (a, b Input) {
	return Input{"A", w.A, 1}, Input{"B", w.B, 2}
}

// Ratio returns an input of so many times the size of A, and of other content.
func (w Workload) Ratio(ratio float64) Input {
	return Input{fmt.Sprintf("%gA", ratio), max(1, int(math.Round(float64(w.A)*ratio))), 3}
}

// maxEvent is the size of the largest event that functions may get.
const maxEvent = 6 << 20

// Event returns the event that carries an input.
func (w Workload) Event(in Input) ([]byte, error) {
	event := struct {
		Size int    `json:"size"`
		Seed uint64 `json:"seed"`
		Data string `json:"data,omitempty"`
	}{Size: in.Size, Seed: in.Seed}
	if w.data != nil {
		var err error
		if event.Data, err = w.data(in.Size, in.Seed); err != nil {
			return nil, fmt.Errorf("make input %s of %s: %w", in.Name, w.Name, err)
		}
	}
	text, err := json.Marshal(event)
	if err == nil && len(text) > maxEvent {
		err = fmt.Errorf("an event of %d bytes: the limit is %d", len(text), maxEvent)
	}
	if err != nil {
		return nil, fmt.Errorf("make input %s of %s: %w", in.Name, w.Name, err)
	}
	return text, nil
}

// packages are Debian's, for all functions that need some: one root file system
// is made faster than many, and what a function does not use is never read.
func packages() []string {
	return []string{"ffmpeg", "python3-chameleon", "python3-igraph", "python3-numpy", "python3-pil", "python3-pyaes"}
}
