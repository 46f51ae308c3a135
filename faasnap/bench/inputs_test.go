package bench

import (
	"bytes"
	"testing"
)

func TestInputsAreTheSameAgainAndDifferByTheirSeeds(t *testing.T) {
	for _, w := range Workloads() {
		t.Run(w.Name, func(t *testing.T) {
			a, b := w.Inputs()
			first, err := w.Event(a)
			if err != nil {
				t.Fatal(err)
			}
			again, err := w.Event(a)
			if err != nil || !bytes.Equal(first, again) {
				t.Errorf("input A is another the second time (%v)", err)
			}
			other, err := w.Event(b)
			if err != nil || bytes.Equal(first, other) {
				t.Errorf("inputs A and B are the same (%v)", err)
			}
			if w.Variable() && w.A >= w.B {
				t.Errorf("input A has %d %s, input B %d: want more", w.A, w.Unit, w.B)
			}
			large, err := w.Event(w.Ratio(4))
			if err != nil {
				t.Error(err)
			}
			t.Logf("events of %d (A), %d (B), %d bytes (4A)", len(first), len(other), len(large))
			if _, err := functions.ReadFile("functions/" + w.Name + ".py"); err != nil {
				t.Error(err)
			}
		})
	}
}
