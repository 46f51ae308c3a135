package bus

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
)

// memoryObjectState is the state of a bucket of objects. A stored object is
// not changed any more, only replaced.
type memoryObjectState struct {
	mu      sync.Mutex
	objects map[string][]byte
}

// memoryObjects is a bucket of objects as one connection sees it.
type memoryObjects struct {
	conn  *memoryConn
	state *memoryObjectState
}

func (c *memoryConn) Objects(ctx context.Context, bucket string) (Objects, error) {
	if err := checkName("bucket", bucket); err != nil {
		return nil, fmt.Errorf("open objects: %w", err)
	}
	if err := c.wait(ctx); err != nil {
		return nil, fmt.Errorf("open objects %s: %w", bucket, err)
	}
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[bucket]
	if o == nil {
		o = &memoryObjectState{objects: make(map[string][]byte)}
		s.objects[bucket] = o
	}
	return &memoryObjects{c, o}, nil
}

func (o *memoryObjects) Put(ctx context.Context, key string, r io.Reader) (int64, error) {
	if err := checkObjectKey(key); err != nil {
		return 0, fmt.Errorf("put object: %w", err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return 0, fmt.Errorf("put object %s: read it: %w", key, err)
	}
	if err := o.conn.wait(ctx); err != nil {
		return 0, fmt.Errorf("put object %s: %w", key, err)
	}
	o.state.mu.Lock()
	defer o.state.mu.Unlock()
	o.state.objects[key] = data
	return int64(len(data)), nil
}

// checkObjectKey says what is wrong with an object's key.
func checkObjectKey(key string) error {
	if key == "" {
		return fmt.Errorf("key is empty")
	}
	return nil
}

func (o *memoryObjects) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	if err := o.conn.wait(ctx); err != nil {
		return nil, fmt.Errorf("get object %s: %w", key, err)
	}
	o.state.mu.Lock()
	defer o.state.mu.Unlock()
	data, ok := o.state.objects[key]
	if !ok {
		return nil, fmt.Errorf("get object %s: %w", key, ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (o *memoryObjects) Delete(ctx context.Context, key string) error {
	if err := o.conn.wait(ctx); err != nil {
		return fmt.Errorf("delete object %s: %w", key, err)
	}
	o.state.mu.Lock()
	defer o.state.mu.Unlock()
	delete(o.state.objects, key)
	return nil
}

func (o *memoryObjects) Keys(ctx context.Context) ([]string, error) {
	if err := o.conn.wait(ctx); err != nil {
		return nil, fmt.Errorf("list objects: %w", err)
	}
	o.state.mu.Lock()
	defer o.state.mu.Unlock()
	return slices.Sorted(maps.Keys(o.state.objects)), nil
}
