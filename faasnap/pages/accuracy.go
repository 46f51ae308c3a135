package pages

// Accuracy says how good a plan was for an invocation. Zero pages do not count:
// they cost no reading either way.
type Accuracy struct {
	// UsedPages is how many pages the invocation wanted, LoadedPages how many the
	// plan loads ahead, and HitPages how many are both.
	UsedPages, LoadedPages, HitPages int
}

// Measure returns how good p is for an invocation that wanted these pages. It
// panics if they are of a guest of another size.
func Measure(p *Plan, used Set) Accuracy {
	if used.Pages() != p.Pages {
		panic("pages: a plan and a set of different sizes")
	}
	loaded := NewSet(p.Pages)
	for _, r := range p.Regions {
		if r.Source == Loading {
			loaded.AddRange(r.Range)
		}
	}
	used = used.Intersect(p.Stored())
	return Accuracy{UsedPages: used.Count(), LoadedPages: loaded.Count(), HitPages: used.Intersect(loaded).Count()}
}

// Recall is which part of what the invocation wanted was loaded ahead, 1 if it
// wanted nothing. The rest is read while the guest waits.
func (a Accuracy) Recall() float64 { return part(a.HitPages, a.UsedPages) }

// Precision is which part of what was loaded ahead the invocation wanted, 1 if
// nothing was. The rest takes room in the page cache, and time to read.
func (a Accuracy) Precision() float64 { return part(a.HitPages, a.LoadedPages) }

func part(n, of int) float64 {
	if of == 0 {
		return 1
	}
	return float64(n) / float64(of)
}
