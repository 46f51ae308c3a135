package bus

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// memoryBucket is the state of a bucket, which its connections share.
type memoryBucket struct {
	clock Clock

	mu       sync.Mutex
	ttl      time.Duration
	revision uint64
	entries  map[string]memoryEntry
	// ages has what was written, oldest first, if there is a TTL.
	ages      []memoryAge
	stopTimer func() bool // nil if no timer runs
	watches   map[*memoryWatch]struct{}
	// gone has the revisions of removals that a watch has missed.
	gone map[string]uint64
}

type memoryEntry struct {
	value    []byte
	revision uint64
}

// memoryAge is when a revision of a key was written.
type memoryAge struct {
	key      string
	revision uint64
	written  time.Time
}

// memoryKV is a bucket as one connection sees it.
type memoryKV struct {
	conn   *memoryConn
	bucket *memoryBucket
}

func (c *memoryConn) KV(ctx context.Context, bucket string, opts KVOptions) (KV, error) {
	if err := checkName("bucket", bucket); err != nil {
		return nil, fmt.Errorf("open bucket: %w", err)
	}
	if err := c.wait(ctx); err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", bucket, err)
	}
	s := c.server
	s.mu.Lock()
	b := s.buckets[bucket]
	if b == nil {
		b = &memoryBucket{
			clock:   s.clock,
			entries: make(map[string]memoryEntry),
			watches: make(map[*memoryWatch]struct{}),
			gone:    make(map[string]uint64),
		}
		s.buckets[bucket] = b
	}
	s.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ttl != opts.TTL {
		b.ttl = opts.TTL
		b.expire()
	}
	return &memoryKV{c, b}, nil
}

// begin checks an operation's key and value and waits for the server.
func (k *memoryKV) begin(ctx context.Context, key string, value []byte) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if int64(len(value)) > k.conn.server.maxMessageBytes {
		return fmt.Errorf("%d bytes: %w", len(value), ErrTooLarge)
	}
	return k.conn.wait(ctx)
}

func (k *memoryKV) Get(ctx context.Context, key string) (Entry, error) {
	if err := k.begin(ctx, key, nil); err != nil {
		return Entry{}, fmt.Errorf("get %s: %w", key, err)
	}
	b := k.bucket
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expire()
	e, ok := b.entries[key]
	if !ok {
		return Entry{}, fmt.Errorf("get %s: %w", key, ErrNotFound)
	}
	return e.entry(key), nil
}

func (e memoryEntry) entry(key string) Entry {
	return Entry{Key: key, Value: clone(e.value), Revision: e.revision}
}

func (k *memoryKV) Put(ctx context.Context, key string, value []byte) (uint64, error) {
	return k.write(ctx, "put", key, value, func(memoryEntry) bool { return true })
}

func (k *memoryKV) Create(ctx context.Context, key string, value []byte) (uint64, error) {
	return k.write(ctx, "create", key, value, func(have memoryEntry) bool { return have.revision == 0 })
}

func (k *memoryKV) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	return k.write(ctx, "update", key, value, func(have memoryEntry) bool {
		return have.revision == revision && revision != 0
	})
}

// write stores a value if what is there, the zero entry for nothing, may be
// replaced.
func (k *memoryKV) write(ctx context.Context, verb, key string, value []byte, mayReplace func(memoryEntry) bool) (uint64, error) {
	if err := k.begin(ctx, key, value); err != nil {
		return 0, fmt.Errorf("%s %s: %w", verb, key, err)
	}
	b := k.bucket
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expire()
	if !mayReplace(b.entries[key]) {
		return 0, fmt.Errorf("%s %s: %w", verb, key, ErrExists)
	}
	b.revision++
	e := memoryEntry{clone(value), b.revision}
	b.entries[key] = e
	b.tell(e.entry(key))
	if b.ttl > 0 {
		b.ages = append(b.ages, memoryAge{key, e.revision, b.clock.Now()})
		b.expire()
	}
	return e.revision, nil
}

func (k *memoryKV) Delete(ctx context.Context, key string) error {
	if err := k.begin(ctx, key, nil); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	b := k.bucket
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expire()
	if _, ok := b.entries[key]; ok {
		b.remove(key)
	}
	return nil
}

func (k *memoryKV) Keys(ctx context.Context) ([]string, error) {
	if err := k.conn.wait(ctx); err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	b := k.bucket
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expire()
	return slices.Sorted(maps.Keys(b.entries)), nil
}

// remove takes a key out. It is called with the lock held.
func (b *memoryBucket) remove(key string) {
	b.revision++
	delete(b.entries, key)
	b.tell(Entry{Key: key, Revision: b.revision, Deleted: true})
}

// expire removes what is too old, and sees to it that it is called when more
// will be. It is called with the lock held.
func (b *memoryBucket) expire() {
	if b.ttl <= 0 {
		b.ages = nil
		return
	}
	now := b.clock.Now()
	for len(b.ages) > 0 && now.Sub(b.ages[0].written) >= b.ttl {
		old := b.ages[0]
		b.ages = b.ages[1:]
		if b.entries[old.key].revision == old.revision {
			b.remove(old.key)
		}
	}
	if len(b.ages) > 0 && b.stopTimer == nil {
		b.stopTimer = b.clock.AfterFunc(b.ages[0].written.Add(b.ttl).Sub(now), func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.stopTimer = nil
			b.expire()
		})
	}
	if len(b.ages) == 0 && b.stopTimer != nil && b.stopTimer() {
		b.stopTimer = nil
	}
}

// memoryWatch is one Watch. Its fields are guarded by the bucket's lock.
type memoryWatch struct {
	conn   *memoryConn
	wake   chan struct{}
	queue  []Entry
	last   uint64 // newest revision that was queued
	missed bool   // something since last was not queued
}

// tell queues a change for every watch. It is called with the lock held.
func (b *memoryBucket) tell(e Entry) {
	anyMissed := false
	for w := range b.watches {
		if w.missed || !w.conn.connected.Load() {
			w.missed, anyMissed = true, true
			continue
		}
		copied := e
		copied.Value = clone(e.Value)
		w.queue = append(w.queue, copied)
		w.last = e.Revision
		signal(w.wake)
	}
	switch {
	case !anyMissed:
		clear(b.gone)
	case e.Deleted:
		b.gone[e.Key] = e.Revision
	default:
		delete(b.gone, e.Key)
	}
}

// present returns all entries, oldest first. It is called with the lock held.
func (b *memoryBucket) present() []Entry {
	return b.since(0, nil)
}

// catchUp queues what a watch has missed. It is called with the lock held.
func (b *memoryBucket) catchUp(w *memoryWatch) {
	w.queue = append(w.queue, b.since(w.last, b.gone)...)
	w.missed, w.last = false, b.revision
}

// since returns the entries and removals after a revision, oldest first.
func (b *memoryBucket) since(revision uint64, gone map[string]uint64) []Entry {
	var out []Entry
	for key, e := range b.entries {
		if e.revision > revision {
			out = append(out, e.entry(key))
		}
	}
	for key, removed := range gone {
		if removed > revision {
			out = append(out, Entry{Key: key, Revision: removed, Deleted: true})
		}
	}
	slices.SortFunc(out, func(x, y Entry) int { return cmp.Compare(x.Revision, y.Revision) })
	return out
}

func (k *memoryKV) Watch(ctx context.Context, handle func(Entry), ready func()) (func(), error) {
	if err := k.conn.wait(ctx); err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	b := k.bucket
	w := &memoryWatch{conn: k.conn, wake: make(chan struct{}, 1)}
	b.mu.Lock()
	b.expire()
	present := b.present()
	w.last = b.revision
	b.watches[w] = struct{}{}
	b.mu.Unlock()

	ctx, cancel := k.conn.during(ctx)
	err := k.conn.goWhileOpen(w.wake, func() {
		defer cancel()
		defer b.unwatch(w)
		if !handleAll(ctx, present, handle) {
			return
		}
		if ready != nil {
			ready()
		}
		b.follow(ctx, w, handle)
	})
	if err != nil {
		b.unwatch(w)
		cancel()
		return nil, fmt.Errorf("watch: %w", err)
	}
	return cancel, nil
}

func (b *memoryBucket) unwatch(w *memoryWatch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.watches, w)
}

// follow hands on the changes that are queued for a watch.
func (b *memoryBucket) follow(ctx context.Context, w *memoryWatch, handle func(Entry)) {
	for {
		b.mu.Lock()
		if w.missed && w.conn.connected.Load() {
			b.catchUp(w)
		}
		batch := w.queue
		w.queue = nil
		b.mu.Unlock()
		if !handleAll(ctx, batch, handle) {
			return
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return
		}
	}
}

// handleAll tells whether the context went on until all were handled.
func handleAll(ctx context.Context, entries []Entry, handle func(Entry)) bool {
	for _, e := range entries {
		if ctx.Err() != nil {
			return false
		}
		handle(e)
	}
	return true
}
