package policy

import "github.com/volley-run/volley/sophon"

// perFunction is what a policy knows of each function. The zero value of T is
// what it knows of a new one.
type perFunction[T any] struct {
	items []*T // by sophon.Function.Index
}

// of returns what is known of f; it stays valid until forget.
func (p *perFunction[T]) of(f *sophon.Function) *T {
	i := f.Index()
	if i < len(p.items) && p.items[i] != nil {
		return p.items[i]
	}
	for i >= len(p.items) {
		p.items = append(p.items, nil)
	}
	p.items[i] = new(T)
	return p.items[i]
}

// known returns what is known of f, or nil if nobody has asked for it before.
func (p *perFunction[T]) known(f *sophon.Function) *T {
	if i := f.Index(); i < len(p.items) {
		return p.items[i]
	}
	return nil
}

// forget drops what is known of f.
func (p *perFunction[T]) forget(f *sophon.Function) {
	if i := f.Index(); i < len(p.items) {
		p.items[i] = nil
	}
}
