package plot

import (
	"bytes"
	"encoding/xml"
	"errors"
	"image/color"
	"image/png"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var figure = Figure{Title: "Cold starts of one function", XLabel: "requests a second", YLabel: "time to first byte, ms"}

func bars() ([]string, []Series) {
	return []string{"hello", "json", "image", "ffmpeg"}, []Series{
		{Name: "cold", Values: []float64{412, 530, 891, 1240}, Err: []float64{20, 31, 60, 90}},
		{Name: "snapshot", Values: []float64{180, 242, 405, math.NaN()}, Err: []float64{12, 0, math.NaN(), 3}},
		{Name: "faasnap", Values: []float64{61, 74, 120, 203}},
	}
}

func lines() []XY {
	var ls []XY
	for i, name := range []string{"round robin", "hash", "sophon"} {
		l := XY{Name: name}
		for x := range 10 + 60*(i/2) {
			l.X = append(l.X, float64(x)/float64(1+6*(i/2)))
			l.Y = append(l.Y, 3+float64(i+1)*math.Sqrt(l.X[x]))
		}
		ls = append(ls, l)
	}
	return ls
}

// checkFigure checks that the two files of a figure, and nothing else, are
// there and can be read.
func checkFigure(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 {
		t.Errorf("files: %v, want one SVG and one PNG", entries)
	}
	data, err := os.ReadFile(path + ".png")
	if err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if got := color.NRGBAModel.Convert(img.At(1, 1)); got != (color.NRGBA{0xff, 0xff, 0xff, 0xff}) {
		t.Errorf("the background is %v, want white", got)
	}
	seen := make(map[color.Color]bool)
	for y := 0; y < img.Bounds().Dy(); y += 2 {
		for x := 0; x < img.Bounds().Dx(); x += 2 {
			seen[color.NRGBAModel.Convert(img.At(x, y))] = true
		}
	}
	for i := range 3 {
		if !seen[seriesColor(i)] {
			t.Errorf("the colour of series %d, %v, is not in the picture", i, seriesColor(i))
		}
	}
	data, err = os.ReadFile(path + ".svg")
	if err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(bytes.NewReader(data)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(string(data), figure.YLabel) {
		t.Error("the SVG does not have the axis label as text")
	}
}

func TestFiguresAreWrittenTwice(t *testing.T) {
	groups, series := bars()
	tests := []struct {
		name string
		draw func(path string) error
	}{
		{"bars", func(path string) error { return Bars(path, figure, groups, series) }},
		{"lines", func(path string) error { return Lines(path, figure, lines()) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), tt.name)
			for range 2 { // the second time, files are replaced
				if err := tt.draw(path); err != nil {
					t.Fatal(err)
				}
			}
			checkFigure(t, path)
		})
	}
}

func TestUnusualFiguresCanBeDrawn(t *testing.T) {
	nan := math.NaN()
	tests := []struct {
		name string
		draw func(path string) error
	}{
		{"one bar without a name", func(path string) error {
			return Bars(path, figure, []string{"a"}, []Series{{Values: []float64{1}}})
		}},
		{"bars of zero", func(path string) error {
			return Bars(path, figure, []string{"a"}, []Series{{Name: "x", Values: []float64{0}}})
		}},
		{"only gaps", func(path string) error {
			return Bars(path, figure, []string{"a", "b"}, []Series{{Name: "x", Values: []float64{nan, nan}}})
		}},
		{"negative bars", func(path string) error {
			return Bars(path, figure, []string{"a"}, []Series{{Name: "x", Values: []float64{-4}, Err: []float64{1}}})
		}},
		{"a line of one point", func(path string) error {
			return Lines(path, figure, []XY{{X: []float64{1}, Y: []float64{0}}})
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.draw(filepath.Join(t.TempDir(), "figure")); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFaultyFiguresAreRefusedAndLeaveNothingBehind(t *testing.T) {
	inf := math.Inf(1)
	tests := []struct {
		name string
		draw func(path string) error
		want string
	}{
		{"no groups", func(path string) error { return Bars(path, figure, nil, nil) }, "nothing to draw"},
		{"a missing value", func(path string) error {
			return Bars(path, figure, []string{"a", "b"}, []Series{{Name: "x", Values: []float64{1}}})
		}, `series "x" has 1 values for 2 groups`},
		{"a missing error", func(path string) error {
			return Bars(path, figure, []string{"a"}, []Series{{Name: "x", Values: []float64{1}, Err: []float64{}}})
		}, `series "x" has 0 errors for 1 groups`},
		{"an infinite bar", func(path string) error {
			return Bars(path, figure, []string{"a"}, []Series{{Name: "x", Values: []float64{inf}}})
		}, `value 0 of series "x" is +Inf`},
		{"no lines", func(path string) error { return Lines(path, figure, nil) }, "nothing to draw"},
		{"a line without points", func(path string) error { return Lines(path, figure, []XY{{Name: "x"}}) }, `line "x" has no points`},
		{"a line with too many X", func(path string) error {
			return Lines(path, figure, []XY{{Name: "x", X: []float64{1, 2}, Y: []float64{1}}})
		}, `line "x" has 2 X but 1 Y`},
		{"a line with a NaN", func(path string) error {
			return Lines(path, figure, []XY{{Name: "x", X: []float64{1}, Y: []float64{math.NaN()}}})
		}, `Y 0 of series "x" is NaN`},
		{"a folder that is not there", func(path string) error {
			return Lines(filepath.Join(path, "figure"), figure, lines())
		}, "no such file or directory"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			err := tt.draw(filepath.Join(dir, "figure"))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want one with %q", err, tt.want)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
