package trace

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
)

// readInvocations reads the file of invocations a minute.
func readInvocations(file string, r io.Reader) (*Trace, error) {
	t, err := newTable(file, r)
	if err != nil {
		return nil, err
	}
	owner, app, id, err := hashColumns(t)
	if err != nil {
		return nil, err
	}
	trigger := t.optional("Trigger")
	minutes, first, err := minuteColumns(t)
	if err != nil {
		return nil, err
	}
	tr := &Trace{FirstMinute: first, Minutes: len(minutes), Unjoined: true}
	lines := map[string]int{}
	for {
		if err := t.next(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		f := &Function{PerMinute: make([]uint32, len(minutes))}
		if f.ID, err = t.id(id); err != nil {
			return nil, err
		}
		if err := unique(t, id, lines, f.ID); err != nil {
			return nil, err
		}
		if f.Owner, err = t.id(owner); err != nil {
			return nil, err
		}
		if f.App, err = t.id(app); err != nil {
			return nil, err
		}
		if trigger >= 0 {
			f.Trigger = strings.Clone(t.row[trigger])
		}
		for i, column := range minutes {
			if f.PerMinute[i], err = t.count(column); err != nil {
				return nil, err
			}
		}
		f.Invocations = sum(f.PerMinute)
		tr.Invocations += f.Invocations
		tr.Unjoined = tr.Unjoined && f.ID == f.App && f.ID == f.Owner
		tr.Functions = append(tr.Functions, f)
	}
	if len(tr.Functions) == 0 {
		return nil, &ParseError{File: file, Err: errors.New("has no functions")}
	}
	return tr, nil
}

func hashColumns(t *table) (owner, app, id int, err error) {
	var errs [3]error
	owner, errs[0] = t.column("HashOwner")
	app, errs[1] = t.column("HashApp")
	id, errs[2] = t.column("HashFunction")
	for _, err := range errs {
		if err != nil {
			return 0, 0, 0, err
		}
	}
	return owner, app, id, nil
}

// minuteColumns finds the columns of minutes: "480" or "minute_480", one after
// the other.
func minuteColumns(t *table) (columns []int, first int, err error) {
	last := 0
	for i, name := range t.header {
		switch name {
		case "HashOwner", "HashApp", "HashFunction", "Trigger":
			continue
		}
		minute, err := strconv.Atoi(strings.TrimPrefix(name, "minute_"))
		if err != nil || minute < 0 {
			return nil, 0, t.errorAt(i, name, errors.New("is not the number of a minute"), "remove the column")
		}
		if len(columns) == 0 {
			first = minute
		} else if minute != last+1 {
			return nil, 0, t.errorAt(i, name, fmt.Errorf("follows minute %d", last), "minutes must be consecutive: put the columns in order")
		}
		last = minute
		columns = append(columns, i)
	}
	if len(columns) == 0 {
		return nil, 0, &ParseError{File: t.file, Line: 1, Err: errors.New("has no column of minutes (1, 2, 3, ...)"),
			Remedy: "check that this is a file of invocations a minute"}
	}
	return columns, first, nil
}

// unique returns an error if the key was seen before.
func unique(t *table, column int, lines map[string]int, key string) error {
	line, _ := t.csv.FieldPos(column)
	if before, ok := lines[key]; ok {
		return t.errorAt(column, t.header[column], fmt.Errorf("the same as in line %d", before), "remove one of the two rows")
	}
	lines[key] = line
	return nil
}

// distributions is a file of percentiles, by the key of its rows.
type distributions struct {
	byKey map[string]Distribution
	// rows has them all in the order of the file, to draw from.
	rows []Distribution
	// byApp says that the key is appKey rather than a HashFunction.
	byApp bool
}

func appKey(owner, app string) string { return owner + "/" + app }

// draw returns the row of a function that has none of its own. It depends on
// the seed and the function only.
func (d *distributions) draw(seed uint64, id string) Distribution {
	h := uint64(14695981039346656037) // FNV-1a
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * 1099511628211
	}
	rng := rand.New(rand.NewPCG(seed^h, drawStream))
	return d.rows[rng.IntN(len(d.rows))]
}

const (
	durationPrefix = "percentile_Average_"
	memoryPrefix   = "AverageAllocatedMb_pct"
)

// readDistributions reads a file of percentiles, in columns of that prefix.
func readDistributions(file, prefix string, r io.Reader) (*distributions, error) {
	t, err := newTable(file, r)
	if err != nil {
		return nil, err
	}
	d := &distributions{byKey: map[string]Distribution{}}
	owner, app, id := -1, -1, t.optional("HashFunction")
	if d.byApp = id < 0; d.byApp {
		if prefix == durationPrefix {
			_, err := t.column("HashFunction")
			return nil, err
		}
		if owner, err = t.column("HashOwner"); err != nil {
			return nil, err
		}
		if app, err = t.column("HashApp"); err != nil {
			return nil, err
		}
	}
	columns, percents, err := percentileColumns(t, prefix)
	if err != nil {
		return nil, err
	}
	lines := map[string]int{}
	for {
		if err := t.next(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		var key string
		column := max(id, app)
		if d.byApp {
			key = appKey(t.row[owner], t.row[app])
		} else if key, err = t.id(id); err != nil {
			return nil, err
		}
		if err := unique(t, column, lines, key); err != nil {
			return nil, err
		}
		dist := Distribution{percents: percents, values: make([]float64, len(columns))}
		for i, column := range columns {
			if dist.values[i], err = t.number(column); err != nil {
				return nil, err
			}
			if i > 0 && dist.values[i] < dist.values[i-1] {
				return nil, t.bad(column, fmt.Errorf("%s is less than the percentile before it", t.row[column]))
			}
		}
		d.byKey[key] = dist
		d.rows = append(d.rows, dist)
	}
	if len(d.rows) == 0 {
		return nil, &ParseError{File: file, Err: errors.New("has no rows")}
	}
	return d, nil
}

// percentileColumns finds the columns whose name is the prefix and a number,
// in ascending order of that.
func percentileColumns(t *table, prefix string) (columns []int, percents []float64, err error) {
	type column struct {
		index   int
		percent float64
	}
	var found []column
	for i, name := range t.header {
		number, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		p, err := strconv.ParseFloat(number, 64)
		if err != nil || !(p >= 0 && p <= 100) {
			return nil, nil, t.errorAt(i, name, errors.New("is not a percentile from 0 to 100"), "rename or remove the column")
		}
		if slices.ContainsFunc(found, func(c column) bool { return c.percent == p }) {
			return nil, nil, t.errorAt(i, name, errors.New("is a percentile that is there twice"), "remove one of the two columns")
		}
		found = append(found, column{i, p})
	}
	if len(found) < 2 {
		return nil, nil, &ParseError{File: t.file, Line: 1, Err: fmt.Errorf("has fewer than two columns whose names begin with %s", prefix),
			Remedy: "check that this is a file of percentiles"}
	}
	slices.SortFunc(found, func(a, b column) int {
		if a.percent < b.percent {
			return -1
		}
		return 1
	})
	for _, c := range found {
		columns, percents = append(columns, c.index), append(percents, c.percent)
	}
	return columns, percents, nil
}
