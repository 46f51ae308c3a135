package bus

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

const (
	// objectChunkBytes is the size of the messages that an object is stored in.
	objectChunkBytes = 512 << 10
	// objectWindow is how many of them may be on the way at a time.
	objectWindow = 16
	// objectHeartbeat is how soon a reader notices that an object is gone.
	objectHeartbeat = time.Second
)

// errReplaced is why the reading of an object ends early.
var errReplaced = errors.New("the object was replaced or deleted while it was read")

// natsObjects is a JetStream object store. What it stores is in the format of
// the NATS tools, but it writes with a bounded window, so that a large object
// does not overrun the server, and reads across lost connections.
type natsObjects struct {
	conn   *natsConn
	bucket string
	store  jetstream.ObjectStore
	stream jetstream.Stream
}

func (c *natsConn) Objects(ctx context.Context, bucket string) (Objects, error) {
	if err := checkName("bucket", bucket); err != nil {
		return nil, fmt.Errorf("open objects: %w", err)
	}
	o := &natsObjects{conn: c, bucket: bucket}
	err := c.do(ctx, func(ctx context.Context) (err error) {
		o.store, err = c.js.CreateOrUpdateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: bucket, Replicas: c.replicas})
		if err == nil {
			o.stream, err = c.js.Stream(ctx, o.streamName())
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open objects %s: %w", bucket, err)
	}
	return o, nil
}

func (o *natsObjects) streamName() string { return "OBJ_" + o.bucket }

func (o *natsObjects) chunkSubject(id string) string { return "$O." + o.bucket + ".C." + id }

func (o *natsObjects) metaSubject(key string) string {
	return "$O." + o.bucket + ".M." + base64.URLEncoding.EncodeToString([]byte(key))
}

func (o *natsObjects) Put(ctx context.Context, key string, r io.Reader) (int64, error) {
	if err := checkObjectKey(key); err != nil {
		return 0, fmt.Errorf("put object: %w", err)
	}
	info := &jetstream.ObjectInfo{
		ObjectMeta: jetstream.ObjectMeta{Name: key, Opts: &jetstream.ObjectMetaOptions{ChunkSize: objectChunkBytes}},
		Bucket:     o.bucket,
		NUID:       nuid.Next(),
	}
	err := o.putChunks(ctx, info, r)
	var replaced string
	if err == nil {
		replaced, err = o.putMeta(ctx, info)
	}
	if err != nil {
		// Whether the new description arrived is not known if no answer came.
		// Then it is better to leave chunks that nobody needs than to take
		// those that somebody does.
		if !errors.Is(err, errMetaInDoubt) {
			o.purge(ctx, info.NUID)
		}
		return 0, fmt.Errorf("put object %s: %w", key, err)
	}
	if replaced != "" {
		o.purge(ctx, replaced)
	}
	return int64(info.Size), nil
}

// putChunks stores the content, which nobody sees yet, and notes in info what
// there is.
func (o *natsObjects) putChunks(ctx context.Context, info *jetstream.ObjectInfo, r io.Reader) error {
	var window []jetstream.PubAckFuture
	digest := sha256.New()
	for end := false; !end; {
		chunk := make([]byte, objectChunkBytes)
		n, err := io.ReadFull(r, chunk)
		end = errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !end {
			return fmt.Errorf("read it: %w", err)
		}
		if n == 0 {
			break
		}
		digest.Write(chunk[:n])
		info.Size += uint64(n)
		info.Chunks++
		var ack jetstream.PubAckFuture
		err = o.conn.do(ctx, func(context.Context) (err error) {
			ack, err = o.conn.js.PublishAsync(o.chunkSubject(info.NUID), chunk[:n])
			return err
		})
		if err != nil {
			return fmt.Errorf("store chunk: %w", err)
		}
		window = append(window, ack)
		if len(window) == objectWindow {
			if err := o.acknowledged(ctx, window[0]); err != nil {
				return err
			}
			window = window[1:]
		}
	}
	for _, ack := range window {
		if err := o.acknowledged(ctx, ack); err != nil {
			return err
		}
	}
	info.Digest = jetstream.GetObjectDigestValue(digest)
	return nil
}

func (o *natsObjects) acknowledged(ctx context.Context, ack jetstream.PubAckFuture) error {
	link, _ := o.conn.currentLink()
	err := o.conn.within(ctx, link, operationTimeout, func(ctx context.Context) error {
		select {
		case <-ack.Ok():
			return nil
		case err := <-ack.Err():
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	if err != nil {
		return fmt.Errorf("store chunk: %w", o.conn.translate(err))
	}
	return nil
}

// errMetaInDoubt marks an error that leaves open whether an object was stored.
var errMetaInDoubt = errors.New("it is not known whether the object was stored")

// putMeta has everybody see the object, or that it was deleted, and returns
// the id of the chunks that nobody needs any more, if any.
func (o *natsObjects) putMeta(ctx context.Context, info *jetstream.ObjectInfo) (replaced string, err error) {
	data, err := json.Marshal(info)
	if err != nil {
		return "", fmt.Errorf("describe it: %w", err)
	}
	for {
		before, revision, err := o.meta(ctx, info.Name)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return "", fmt.Errorf("look for an older one: %w", err)
		}
		m := nats.NewMsg(o.metaSubject(info.Name))
		m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
		m.Data = data
		err = o.conn.do(ctx, func(ctx context.Context) error {
			_, err := o.conn.js.PublishMsg(ctx, m, jetstream.WithExpectLastSequencePerSubject(revision))
			return err
		})
		var refused *jetstream.APIError
		switch {
		case err == nil:
			return before.NUID, nil
		case !errors.As(err, &refused):
			return "", fmt.Errorf("%w: %w", errMetaInDoubt, err)
		case refused.ErrorCode != jetstream.JSErrCodeStreamWrongLastSequence &&
			refused.ErrorCode != jetstream.JSErrCodeStreamWrongLastSequenceConstant:
			return "", fmt.Errorf("store its description: %w", err)
		}
		// Somebody else stored this key meanwhile; theirs is replaced too.
	}
}

// meta returns an object's description, and the revision of that. An object
// that was deleted has no id and no size, but a revision.
func (o *natsObjects) meta(ctx context.Context, key string) (jetstream.ObjectInfo, uint64, error) {
	var m *jetstream.RawStreamMsg
	err := o.conn.do(ctx, func(ctx context.Context) (err error) {
		m, err = o.stream.GetLastMsgForSubject(ctx, o.metaSubject(key))
		return err
	})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return jetstream.ObjectInfo{}, 0, ErrNotFound
	}
	if err != nil {
		return jetstream.ObjectInfo{}, 0, err
	}
	var info jetstream.ObjectInfo
	if err := json.Unmarshal(m.Data, &info); err != nil {
		return jetstream.ObjectInfo{}, 0, fmt.Errorf("read description: %w", err)
	}
	if info.Deleted {
		return jetstream.ObjectInfo{}, m.Sequence, ErrNotFound
	}
	return info, m.Sequence, nil
}

// purge removes chunks that nobody needs any more, as well as it can.
func (o *natsObjects) purge(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), operationTimeout)
	defer cancel()
	err := o.conn.do(ctx, func(ctx context.Context) error {
		return o.stream.Purge(ctx, jetstream.WithPurgeSubject(o.chunkSubject(id)))
	})
	if err != nil {
		o.conn.log.Warn("leave chunks of an object behind", "bucket", o.bucket, "id", id, "error", err)
	}
}

func (o *natsObjects) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	if err := checkObjectKey(key); err != nil {
		return nil, fmt.Errorf("get object: %w", err)
	}
	info, _, err := o.meta(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("get object %s: %w", key, err)
	}
	if info.Size == 0 {
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	pipe, w := io.Pipe()
	reader := o.chunkReader(ctx, key, info, w)
	session, err := reader.open(ctx)
	if err != nil {
		return nil, fmt.Errorf("get object %s: %w", key, err)
	}
	done := make(chan struct{})
	stop, err := o.conn.goWhileOpen(ctx, func(ctx context.Context) {
		defer close(done)
		// A reader that is slow is not worth waiting for once this ends.
		defer context.AfterFunc(ctx, func() { w.CloseWithError(context.Cause(ctx)) })()
		err := reader.run(ctx, session)
		if !errors.Is(err, io.EOF) {
			err = fmt.Errorf("read object %s: %w", key, err)
		}
		w.CloseWithError(err)
	})
	if err != nil {
		session.end()
		return nil, fmt.Errorf("get object %s: %w", key, err)
	}
	return &natsObject{PipeReader: pipe, stop: stop, done: done}, nil
}

// chunkReader reads an object's chunks into w. It ends with io.EOF if all is
// there and is what was stored.
func (o *natsObjects) chunkReader(ctx context.Context, key string, info jetstream.ObjectInfo, w io.Writer) *streamReader {
	digest := sha256.New()
	var size uint64
	return &streamReader{
		conn: o.conn, stream: o.streamName(), subject: o.chunkSubject(info.NUID),
		policy: jetstream.DeliverAllPolicy, heartbeat: objectHeartbeat,
		handle: func(m *nats.Msg, _ *nats.MsgMetadata) error {
			size += uint64(len(m.Data))
			digest.Write(m.Data)
			if size == info.Size && jetstream.GetObjectDigestValue(digest) != info.Digest {
				return errors.New("content does not have the SHA-256 that was stored")
			}
			if _, err := w.Write(m.Data); err != nil {
				return err
			}
			if size == info.Size {
				return io.EOF
			}
			return nil
		},
		caughtUp: func() error { return errReplaced }, // and less than the size was there
		idle: func() error {
			now, _, err := o.meta(ctx, key)
			if errors.Is(err, ErrNotFound) || err == nil && now.NUID != info.NUID {
				return errReplaced
			}
			return nil
		},
	}
}

// natsObject is an open object.
type natsObject struct {
	*io.PipeReader
	stop context.CancelFunc
	done <-chan struct{}
	once sync.Once
}

func (o *natsObject) Close() error {
	o.once.Do(func() {
		_ = o.PipeReader.Close() // never fails
		o.stop()
		<-o.done
	})
	return nil
}

func (o *natsObjects) Delete(ctx context.Context, key string) error {
	if err := checkObjectKey(key); err != nil {
		return fmt.Errorf("delete object: %w", err)
	}
	info, _, err := o.meta(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	var removed string
	if err == nil {
		removed, err = o.putMeta(ctx, &jetstream.ObjectInfo{
			ObjectMeta: jetstream.ObjectMeta{Name: key},
			Bucket:     o.bucket,
			NUID:       info.NUID,
			Deleted:    true,
		})
	}
	if err != nil {
		return fmt.Errorf("delete object %s: %w", key, err)
	}
	if removed != "" {
		o.purge(ctx, removed)
	}
	return nil
}

func (o *natsObjects) Keys(ctx context.Context) ([]string, error) {
	var objects []*jetstream.ObjectInfo
	err := o.conn.do(ctx, func(ctx context.Context) (err error) {
		objects, err = o.store.List(ctx)
		return err
	})
	if err != nil && !errors.Is(err, jetstream.ErrNoObjectsFound) {
		return nil, fmt.Errorf("list objects: %w", err)
	}
	keys := make([]string, 0, len(objects))
	for _, info := range objects {
		keys = append(keys, info.Name)
	}
	slices.Sort(keys)
	return keys, nil
}
