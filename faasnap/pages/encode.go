package pages

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	planMagic   = "VOLLEYPL"
	planVersion = 1
	planHeader  = 32
	planRecord  = 32
	// maxRegions bounds an encoded plan to 32 MiB. The kernel's default of
	// vm.max_map_count is a sixteenth of it.
	maxRegions = 1 << 20
)

// MarshalBinary returns the plan in the form that docs/formats/snapshot.md
// describes: 32 bytes and 32 for each region. Records are of one size so that
// what carries a plan out inside a VMM needs no parser.
func (p *Plan) MarshalBinary() ([]byte, error) {
	if err := p.Check(); err != nil {
		return nil, fmt.Errorf("encode plan: %w", err)
	}
	b := make([]byte, 0, planHeader+planRecord*len(p.Regions))
	b = append(b, planMagic...)
	b = binary.LittleEndian.AppendUint32(b, planVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(p.Regions)))
	b = binary.LittleEndian.AppendUint64(b, uint64(p.Pages))
	b = binary.LittleEndian.AppendUint64(b, uint64(p.LoadingPages))
	for _, r := range p.Regions {
		b = binary.LittleEndian.AppendUint64(b, uint64(r.Start))
		b = binary.LittleEndian.AppendUint64(b, uint64(r.Len()))
		b = binary.LittleEndian.AppendUint64(b, uint64(r.Offset))
		b = binary.LittleEndian.AppendUint32(b, uint32(r.Source))
		b = binary.LittleEndian.AppendUint32(b, uint32(r.Group))
	}
	return b, nil
}

// UnmarshalBinary reads what MarshalBinary wrote, into p, and refuses anything
// that is not a plan in which every page is served exactly once.
func (p *Plan) UnmarshalBinary(b []byte) error {
	got, err := decodePlan(b)
	if err != nil {
		return fmt.Errorf("decode plan: %w", err)
	}
	*p = got
	return nil
}

func decodePlan(b []byte) (Plan, error) {
	if len(b) < planHeader || string(b[:8]) != planMagic {
		return Plan{}, errors.New("not a plan")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != planVersion {
		return Plan{}, fmt.Errorf("version %d: this program knows %d", v, planVersion)
	}
	n := int(binary.LittleEndian.Uint32(b[12:]))
	if n > maxRegions {
		return Plan{}, fmt.Errorf("%d regions: want at most %d", n, maxRegions)
	}
	if want := planHeader + planRecord*n; len(b) != want {
		return Plan{}, fmt.Errorf("%d bytes: want %d for %d regions", len(b), want, n)
	}
	// Whatever is out of range becomes -1, which Check refuses.
	number := func(at int) int {
		v := binary.LittleEndian.Uint64(b[at:])
		if v > MaxPages {
			return -1
		}
		return int(v)
	}
	p := Plan{Pages: number(16), LoadingPages: number(24), Regions: make([]Region, n)}
	for i := range p.Regions {
		at := planHeader + planRecord*i
		source := binary.LittleEndian.Uint32(b[at+24:])
		if source > uint32(Loading) {
			return Plan{}, fmt.Errorf("region %d: source %d", i, source)
		}
		start, length := number(at), number(at+8)
		p.Regions[i] = Region{
			Range:  Range{start, start + length},
			Offset: number(at + 16),
			Source: Source(source),
			Group:  int(binary.LittleEndian.Uint32(b[at+28:])),
		}
	}
	return p, p.Check()
}

// Check returns an error that names the first region at which p is not a plan:
// regions in the order of addresses that leave nothing out, each with another
// source than the one before, with offsets as Make sets them.
func (p *Plan) Check() error {
	if p.Pages < 0 || p.Pages > MaxPages {
		return fmt.Errorf("%d pages of guest memory: want 0 to %d", p.Pages, MaxPages)
	}
	if len(p.Regions) > maxRegions {
		return fmt.Errorf("%d regions: want at most %d", len(p.Regions), maxRegions)
	}
	end := 0
	for i, r := range p.Regions {
		switch {
		case r.Start != end || r.End <= r.Start || r.End > p.Pages:
			return fmt.Errorf("region %d: pages %v after page %d of %d", i, r.Range, end, p.Pages)
		case r.Source > Loading:
			return fmt.Errorf("region %d: source %d", i, r.Source)
		case i > 0 && r.Source == p.Regions[i-1].Source:
			return fmt.Errorf("region %d: source %v, as the one before", i, r.Source)
		case r.Group < 0 || r.Group > 1<<32-1 || r.Group != 0 && r.Source != Loading:
			return fmt.Errorf("region %d: group %d of source %v", i, r.Group, r.Source)
		case r.Source == Zero && r.Offset != 0, r.Source == Memory && r.Offset != r.Start:
			return fmt.Errorf("region %d: offset %d of source %v", i, r.Offset, r.Source)
		}
		end = r.End
	}
	if end != p.Pages {
		return fmt.Errorf("regions end at page %d of %d", end, p.Pages)
	}
	offset := 0
	var last Region
	for i, r := range p.Loads() {
		if r.Offset != offset {
			return fmt.Errorf("loading region at page %d: offset %d: want %d", r.Start, r.Offset, offset)
		}
		if i > 0 && (r.Group < last.Group || r.Group == last.Group && r.Start < last.Start) {
			return fmt.Errorf("loading region at page %d: group %d after group %d of page %d", r.Start, r.Group, last.Group, last.Start)
		}
		offset += r.Len()
		last = r
	}
	if offset != p.LoadingPages {
		return fmt.Errorf("loading regions of %d pages: want %d", offset, p.LoadingPages)
	}
	return nil
}
