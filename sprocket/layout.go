package sprocket

import (
	"cmp"
	"slices"
)

const (
	layerGap = 104.0 // room for the labels
	boxGap   = 26.0
	bendGap  = 14.0
	margin   = 16.0
	sweeps   = 12
)

// place gives every box and wire its place: layers by the longest way from an
// input, an order within the layers that has few crossings, then coordinates.
// It returns the size of the drawing. The sketch must have no cycle.
func (d *sketch) place() (width, height float64) {
	d.assignLayers()
	d.bendWires()
	d.orderLayers()
	width = d.placeX()
	height = d.placeY()
	d.spreadEnds()
	return width, height
}

func (d *sketch) assignLayers() {
	for changed := true; changed; {
		changed = false
		for _, w := range d.wires {
			if w.to.layer <= w.from.layer {
				w.to.layer, changed = w.from.layer+1, true
			}
		}
	}
	// A source stands next to what it feeds, however late that comes.
	nearest := make(map[*box]int)
	entered := make(map[*box]bool)
	for _, w := range d.wires {
		entered[w.to] = true
		if at, ok := nearest[w.from]; !ok || w.to.layer < at {
			nearest[w.from] = w.to.layer
		}
	}
	for _, b := range d.boxes {
		if at, ok := nearest[b]; ok && !entered[b] {
			b.layer = at - 1
		}
	}
	for _, b := range d.boxes {
		d.put(b)
	}
}

func (d *sketch) put(b *box) {
	for len(d.layers) <= b.layer {
		d.layers = append(d.layers, nil)
	}
	d.layers[b.layer] = append(d.layers[b.layer], b)
}

// bendWires gives wires that pass layers a bend in each, so that they keep
// clear of the boxes there.
func (d *sketch) bendWires() {
	for _, w := range d.wires {
		for layer := w.from.layer + 1; layer < w.to.layer; layer++ {
			bend := &box{layer: layer, height: 2}
			w.bends = append(w.bends, bend)
			d.put(bend)
		}
	}
}

// neighbours returns, for every box and bend, those that it is joined to one
// layer to the left and to the right.
func (d *sketch) neighbours() (left, right map[*box][]*box) {
	left, right = make(map[*box][]*box), make(map[*box][]*box)
	for _, w := range d.wires {
		at := w.from
		for _, next := range append(slices.Clone(w.bends), w.to) {
			right[at] = append(right[at], next)
			left[next] = append(left[next], at)
			at = next
		}
	}
	return left, right
}

// orderLayers sorts each layer by the mean place of its neighbours, to and fro,
// and keeps the order that had the fewest crossings.
func (d *sketch) orderLayers() {
	left, right := d.neighbours()
	best := cloneLayers(d.layers)
	fewest := crossings(d.layers, right)
	for sweep := 0; sweep < sweeps && fewest > 0; sweep++ {
		flip := sweep%4 >= 2 // ties are settled one way, then the other
		if sweep%2 == 0 {
			for i := 1; i < len(d.layers); i++ {
				sortByNeighbours(d.layers[i], d.layers[i-1], left, flip)
			}
		} else {
			for i := len(d.layers) - 2; i >= 0; i-- {
				sortByNeighbours(d.layers[i], d.layers[i+1], right, flip)
			}
		}
		if n := crossings(d.layers, right); n < fewest {
			fewest, best = n, cloneLayers(d.layers)
		}
	}
	d.layers = best
}

func cloneLayers(layers [][]*box) [][]*box {
	clone := make([][]*box, len(layers))
	for i := range layers {
		clone[i] = slices.Clone(layers[i])
	}
	return clone
}

func placesIn(layer []*box) map[*box]int {
	places := make(map[*box]int, len(layer))
	for i, b := range layer {
		places[b] = i
	}
	return places
}

// sortByNeighbours orders layer by the barycentres of its boxes' neighbours in
// the fixed layer; a box without any keeps its place. flip turns round the order
// of those that are equal.
func sortByNeighbours(layer, fixed []*box, neighbours map[*box][]*box, flip bool) {
	places := placesIn(fixed)
	centre := make(map[*box]float64, len(layer))
	for i, b := range layer {
		sum := 0.0
		for _, n := range neighbours[b] {
			sum += float64(places[n])
		}
		if count := len(neighbours[b]); count > 0 {
			centre[b] = sum / float64(count)
		} else {
			centre[b] = float64(i)
		}
	}
	if flip {
		slices.Reverse(layer)
	}
	slices.SortStableFunc(layer, func(a, b *box) int { return cmp.Compare(centre[a], centre[b]) })
}

// crossings counts the pairs of wires that cross between neighbouring layers.
func crossings(layers [][]*box, right map[*box][]*box) int {
	count := 0
	for i := 0; i+1 < len(layers); i++ {
		places := placesIn(layers[i+1])
		passed := make([]int, len(layers[i+1])) // wires so far, by where they end
		for _, b := range layers[i] {
			for _, n := range right[b] {
				for _, below := range passed[places[n]+1:] {
					count += below
				}
			}
			for _, n := range right[b] {
				passed[places[n]]++
			}
		}
	}
	return count
}

func (d *sketch) placeX() (width float64) {
	x := margin
	for _, layer := range d.layers {
		widest := 0.0
		for _, b := range layer {
			widest = max(widest, b.width)
		}
		for _, b := range layer {
			if len(b.lines) == 0 {
				b.width = widest
			}
			b.x = x + (widest-b.width)/2
		}
		x += widest + layerGap
	}
	return max(x-layerGap, margin) + margin
}

// placeY pulls every box to the mean height of its neighbours, as far as the
// others in its layer allow.
func (d *sketch) placeY() (height float64) {
	left, right := d.neighbours()
	mean := func(b *box, neighbours map[*box][]*box) float64 {
		if len(neighbours[b]) == 0 {
			return b.y
		}
		sum := 0.0
		for _, n := range neighbours[b] {
			sum += n.y
		}
		return sum / float64(len(neighbours[b]))
	}
	for _, layer := range d.layers {
		settle(layer, make([]float64, len(layer)))
	}
	for sweep := range sweeps {
		for i := range d.layers {
			neighbours := left
			if sweep%2 == 1 {
				i, neighbours = len(d.layers)-1-i, right
			}
			wanted := make([]float64, len(d.layers[i]))
			for k, b := range d.layers[i] {
				wanted[k] = mean(b, neighbours)
			}
			settle(d.layers[i], wanted)
		}
	}
	top, bottom := 0.0, 0.0
	for _, layer := range d.layers {
		for _, b := range layer {
			top, bottom = min(top, b.y-b.height/2), max(bottom, b.y+b.height/2)
		}
	}
	for _, layer := range d.layers {
		for _, b := range layer {
			b.y += margin - top
		}
	}
	return bottom - top + 2*margin
}

// settle puts the boxes of a layer as near to the wanted heights as their order
// and the gaps between them allow, by least squares: boxes that would collide
// form a block that stands at the mean of their wishes.
func settle(layer []*box, wanted []float64) {
	type block struct {
		first, count int
		sum          float64
	}
	offsets := make([]float64, len(layer)) // of each box from the layer's first
	var blocks []block
	for i, b := range layer {
		if i > 0 {
			gap := boxGap
			if len(b.lines) == 0 || len(layer[i-1].lines) == 0 {
				gap = bendGap
			}
			offsets[i] = offsets[i-1] + (layer[i-1].height+b.height)/2 + gap
		}
		last := block{first: i, count: 1, sum: wanted[i] - offsets[i]}
		for len(blocks) > 0 {
			above := blocks[len(blocks)-1]
			if above.sum/float64(above.count) < last.sum/float64(last.count) {
				break
			}
			last = block{above.first, above.count + last.count, above.sum + last.sum}
			blocks = blocks[:len(blocks)-1]
		}
		blocks = append(blocks, last)
	}
	for _, bl := range blocks {
		for i := bl.first; i < bl.first+bl.count; i++ {
			layer[i].y = bl.sum/float64(bl.count) + offsets[i]
		}
	}
}

// spreadEnds gives the wires at a side of a box places of their own along it;
// those that leave from one endpoint share one.
func (d *sketch) spreadEnds() {
	leaving, entering := make(map[*box][]*wire), make(map[*box][]*wire)
	for _, w := range d.wires {
		leaving[w.from] = append(leaving[w.from], w)
		entering[w.to] = append(entering[w.to], w)
	}
	for b, wires := range entering {
		slices.SortStableFunc(wires, func(a, b *wire) int { return cmp.Compare(a.lastY(), b.lastY()) })
		for i, w := range wires {
			w.endY = b.along(i, len(wires))
		}
	}
	for b, wires := range leaving {
		slices.SortStableFunc(wires, func(a, b *wire) int { return cmp.Compare(a.firstY(), b.firstY()) })
		var sources []string
		for _, w := range wires {
			if !slices.Contains(sources, w.source) {
				sources = append(sources, w.source)
			}
		}
		for _, w := range wires {
			w.startY = b.along(slices.Index(sources, w.source), len(sources))
		}
	}
}

// along returns the height of the i-th of n points on a side of the box.
func (b *box) along(i, n int) float64 {
	return b.y - b.height/2 + b.height*float64(i+1)/float64(n+1)
}

// firstY is where the wire goes to from its first box, lastY where it comes
// from to its last.
func (w *wire) firstY() float64 {
	if len(w.bends) > 0 {
		return w.bends[0].y
	}
	return w.to.y
}

func (w *wire) lastY() float64 {
	if len(w.bends) > 0 {
		return w.bends[len(w.bends)-1].y
	}
	return w.from.y
}
