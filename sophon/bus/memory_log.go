package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"
)

// memoryLogState is the state of a log, which its connections share.
type memoryLogState struct {
	clock Clock

	mu   sync.Mutex
	opts LogOptions
	// records are in the order of their numbers. One that went before older
	// ones of other subjects is left in as gone, for a while.
	records   []memoryRecord
	gone      int
	next      uint64 // the number of the record that comes next
	bytes     int64
	bySubject map[string][]uint64 // numbers, oldest first
	readers   map[chan struct{}]struct{}
}

type memoryRecord struct {
	Record
	number uint64
	gone   bool
}

func (r memoryRecord) sizeBytes() int64 { return int64(len(r.Subject) + len(r.Data)) }

// memoryLog is a log as one connection sees it.
type memoryLog struct {
	conn  *memoryConn
	state *memoryLogState
}

func (c *memoryConn) Log(ctx context.Context, name string, opts LogOptions) (Log, error) {
	if err := checkName("log", name); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	if err := c.wait(ctx); err != nil {
		return nil, fmt.Errorf("open log %s: %w", name, err)
	}
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.logs[name]
	if l == nil {
		l = &memoryLogState{
			clock:     s.clock,
			bySubject: make(map[string][]uint64),
			readers:   make(map[chan struct{}]struct{}),
		}
		s.logs[name] = l
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.opts = opts
	l.trim()
	return &memoryLog{c, l}, nil
}

func (l *memoryLog) Append(subject string, data []byte) error {
	if err := l.conn.check("append", subject, data); err != nil {
		return err
	}
	l.state.append(subject, clone(data))
	return nil
}

func (l *memoryLogState) append(subject string, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := memoryRecord{Record: Record{Subject: subject, Time: l.clock.Now(), Data: data}, number: l.next}
	l.next++
	l.records = append(l.records, r)
	l.bytes += r.sizeBytes()
	l.bySubject[subject] = append(l.bySubject[subject], r.number)
	if limit := l.opts.MaxPerSubject; limit > 0 && int64(len(l.bySubject[subject])) > limit {
		l.remove(l.index(l.bySubject[subject][0]))
	}
	l.trim()
	for wake := range l.readers {
		signal(wake)
	}
}

// index is where the first record is whose number is not below the given one.
// It is called with the lock held.
func (l *memoryLogState) index(number uint64) int {
	return sort.Search(len(l.records), func(i int) bool { return l.records[i].number >= number })
}

// remove forgets a record, which is the oldest of its subject. It is called
// with the lock held.
func (l *memoryLogState) remove(index int) {
	r := &l.records[index]
	l.bytes -= r.sizeBytes()
	if numbers := l.bySubject[r.Subject]; len(numbers) > 1 {
		l.bySubject[r.Subject] = numbers[1:]
	} else {
		delete(l.bySubject, r.Subject)
	}
	*r = memoryRecord{number: r.number, gone: true}
	l.gone++
}

// trim forgets what is beyond the limits. It is called with the lock held.
func (l *memoryLogState) trim() {
	now := l.clock.Now()
	i := 0
	for ; i < len(l.records); i++ {
		if l.records[i].gone {
			continue
		}
		tooOld := l.opts.MaxAge > 0 && now.Sub(l.records[i].Time) >= l.opts.MaxAge
		tooMuch := l.opts.MaxBytes > 0 && l.bytes > l.opts.MaxBytes
		if !tooOld && !tooMuch {
			break
		}
		l.remove(i)
	}
	l.records, l.gone = l.records[i:], l.gone-i
	if l.gone > len(l.records)/2 {
		l.records = slices.DeleteFunc(l.records, func(r memoryRecord) bool { return r.gone })
		l.gone = 0
	}
}

// from returns the next record for a reader, beginning with a number, and the
// number after it; false if there is none.
func (l *memoryLogState) from(number uint64, pattern string, since time.Time) (Record, uint64, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trim()
	for _, r := range l.records[l.index(number):] {
		if !r.gone && !r.Time.Before(since) && matches(pattern, r.Subject) {
			r.Data = clone(r.Data)
			return r.Record, r.number + 1, true
		}
	}
	return Record{}, max(number, l.next), false
}

func (l *memoryLog) Read(ctx context.Context, subject string, since time.Time, follow bool, handle func(Record) error) error {
	if err := checkPattern(subject); err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	if err := l.conn.wait(ctx); err != nil {
		if follow && ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("read log: %w", err)
	}
	wake := make(chan struct{}, 1)
	err := l.conn.runWhileOpen(ctx, wake, func(ctx context.Context) error {
		s := l.state
		s.mu.Lock()
		s.readers[wake] = struct{}{}
		end := s.next
		s.mu.Unlock()
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.readers, wake)
		}()
		for number := uint64(0); ; {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			var record Record
			var ok bool
			if l.conn.connected.Load() {
				record, number, ok = s.from(number, subject, since)
			}
			switch {
			case ok && (follow || number <= end):
				if err := handle(record); err != nil {
					return err
				}
			case !follow && l.conn.connected.Load():
				return nil
			default:
				select {
				case <-wake:
				case <-ctx.Done():
				}
			}
		}
	})
	switch {
	case err == nil, follow && ctx.Err() != nil && errors.Is(err, context.Cause(ctx)):
		return nil
	case errors.Is(err, ErrClosed), ctx.Err() != nil:
		return fmt.Errorf("read log: %w", err)
	default:
		return err
	}
}
