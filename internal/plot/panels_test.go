package plot

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestPanelsStandBelowEachOther(t *testing.T) {
	path := filepath.Join(t.TempDir(), "panels")
	ls := lines()
	ls[0].Thin = true
	if err := Panels(path, []Panel{{Figure: figure, Lines: lines()}, {Figure: Figure{Title: "log", LogX: true}, Lines: []XY{{Name: "a", X: []float64{1, 10, 1000}, Y: []float64{0, 0.5, 1}}}},
		{Figure: Figure{Title: "log", LogX: true, LogY: true}, Lines: []XY{{Name: "a", X: []float64{1, 10}, Y: []float64{0.3, 4000}}}}, {Figure: figure, Lines: ls}}); err != nil {
		t.Fatal(err)
	}
	checkFigure(t, path)
}

func TestPanelsRefuseWhatCannotBeDrawn(t *testing.T) {
	zero := []XY{{Name: "zero", X: []float64{0, 1}, Y: []float64{0, 1}}}
	for name, panels := range map[string][]Panel{
		"there is nothing to draw": nil,
		"panels \"empty\"":         {{Figure: Figure{Title: "empty"}}},
		"on the horizontal axis":   {{Figure: Figure{Title: "log", LogX: true}, Lines: zero}},
		"on the vertical axis":     {{Figure: Figure{Title: "log", LogY: true}, Lines: zero}},
	} {
		if err := Panels(filepath.Join(t.TempDir(), "x"), panels); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want %q", err, name)
		}
	}
}
