package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// tombstoneLife is how long the server remembers that a key was removed. A
// watch that is without a server for longer may miss removals.
const tombstoneLife = 24 * time.Hour

// natsKV is a JetStream key-value bucket.
type natsKV struct {
	conn *natsConn
	name string
	kv   jetstream.KeyValue
}

func (c *natsConn) KV(ctx context.Context, bucket string, opts KVOptions) (KV, error) {
	if err := checkName("bucket", bucket); err != nil {
		return nil, fmt.Errorf("open bucket: %w", err)
	}
	k := &natsKV{conn: c, name: bucket}
	err := c.do(ctx, func(ctx context.Context) (err error) {
		k.kv, err = c.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket:         bucket,
			TTL:            opts.TTL,
			Replicas:       c.replicas,
			LimitMarkerTTL: tombstoneLife,
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", bucket, err)
	}
	return k, nil
}

// NATS has no "$" in keys; "=" starts the name of a character there.
var (
	// keyEncoder turns a key into one of NATS. It is constant.
	keyEncoder = strings.NewReplacer("=", "=E", "$", "=S")
	// keyDecoder undoes keyEncoder. It is constant.
	keyDecoder = strings.NewReplacer("=E", "=", "=S", "$")
)

// do carries out a request about a key, with the key as NATS has it.
func (k *natsKV) do(ctx context.Context, verb, key string, value []byte, request func(ctx context.Context, key string) error) error {
	err := checkKey(key)
	if err == nil {
		err = k.conn.checkSize(value)
	}
	if err == nil {
		encoded := keyEncoder.Replace(key)
		err = k.conn.do(ctx, func(ctx context.Context) error { return request(ctx, encoded) })
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, jetstream.ErrKeyDeleted):
		err = ErrNotFound
	case errors.Is(err, jetstream.ErrKeyExists), errors.Is(err, jetstream.ErrKeyRevisionMismatch):
		err = ErrExists
	}
	return fmt.Errorf("%s %s: %w", verb, key, err)
}

func (k *natsKV) Get(ctx context.Context, key string) (Entry, error) {
	var found jetstream.KeyValueEntry
	err := k.do(ctx, "get", key, nil, func(ctx context.Context, key string) (err error) {
		found, err = k.kv.Get(ctx, key)
		return err
	})
	if err != nil {
		return Entry{}, err
	}
	return Entry{Key: key, Value: found.Value(), Revision: found.Revision()}, nil
}

func (k *natsKV) Put(ctx context.Context, key string, value []byte) (revision uint64, err error) {
	err = k.do(ctx, "put", key, value, func(ctx context.Context, key string) (err error) {
		revision, err = k.kv.Put(ctx, key, value)
		return err
	})
	return revision, err
}

func (k *natsKV) Create(ctx context.Context, key string, value []byte) (revision uint64, err error) {
	err = k.do(ctx, "create", key, value, func(ctx context.Context, key string) (err error) {
		revision, err = k.kv.Create(ctx, key, value)
		return err
	})
	return revision, err
}

func (k *natsKV) Update(ctx context.Context, key string, value []byte, revision uint64) (updated uint64, err error) {
	err = k.do(ctx, "update", key, value, func(ctx context.Context, key string) (err error) {
		if revision == 0 {
			return jetstream.ErrKeyRevisionMismatch // no key has this revision
		}
		updated, err = k.kv.Update(ctx, key, value, revision)
		return err
	})
	return updated, err
}

func (k *natsKV) Delete(ctx context.Context, key string) error {
	return k.do(ctx, "delete", key, nil, func(ctx context.Context, key string) error {
		return k.kv.Purge(ctx, key, jetstream.PurgeTTL(tombstoneLife))
	})
}

func (k *natsKV) Keys(ctx context.Context) ([]string, error) {
	var keys []string
	err := k.conn.do(ctx, func(ctx context.Context) (err error) {
		keys, err = k.kv.Keys(ctx)
		return err
	})
	if err != nil && !errors.Is(err, jetstream.ErrNoKeysFound) {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	for i, key := range keys {
		keys[i] = keyDecoder.Replace(key)
	}
	slices.Sort(keys)
	return keys, nil
}

func (k *natsKV) Watch(ctx context.Context, handle func(Entry), ready func()) (func(), error) {
	prefix := "$KV." + k.name + "."
	known := make(map[string]bool)
	r := &streamReader{
		conn: k.conn, stream: "KV_" + k.name, subject: prefix + ">",
		policy:    jetstream.DeliverLastPerSubjectPolicy,
		heartbeat: followHeartbeat,
		handle: func(m *nats.Msg, meta *nats.MsgMetadata) error {
			key := keyDecoder.Replace(strings.TrimPrefix(m.Subject, prefix))
			e := Entry{Key: key, Value: m.Data, Revision: meta.Sequence.Stream, Deleted: isTombstone(m)}
			if e.Deleted {
				if !known[key] {
					return nil // the removal of what was not seen is no change
				}
				e.Value = nil
				delete(known, key)
			} else {
				known[key] = true
			}
			handle(e)
			return nil
		},
		caughtUp: func() error {
			if ready != nil {
				ready()
			}
			return nil
		},
	}
	session, err := r.open(ctx)
	if err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	stop, err := k.conn.goWhileOpen(ctx, func(ctx context.Context) {
		_ = r.run(ctx, session) // ends with the context only
	})
	if err != nil {
		session.end()
		return nil, fmt.Errorf("watch: %w", err)
	}
	return stop, nil
}

// isTombstone tells whether a bucket's message says that a key was removed, by
// somebody or because of its age.
func isTombstone(m *nats.Msg) bool {
	return m.Header.Get("KV-Operation") != "" || m.Header.Get(jetstream.MarkerReasonHeader) != ""
}
