// Package bus is how controllers and invokers talk, and where the controllers
// keep what must survive them: messages, a key-value store, a durable work
// queue, objects, and a log that can be followed.
//
// There are two implementations, Memory for one process and NATS; both pass the
// conformance suite in bustest.
package bus

import (
	"context"
	"errors"
	"io"
	"time"
)

// Sentinel errors.
var (
	// ErrNotFound: no such key or object.
	ErrNotFound = errors.New("not found")
	// ErrExists: Create found the key, or Update another revision.
	ErrExists = errors.New("exists already, or was changed meanwhile")
	// ErrClosed: the bus or subscription is closed.
	ErrClosed = errors.New("bus is closed")
	// ErrTooLarge: the message is larger than the bus carries.
	ErrTooLarge = errors.New("message is larger than the bus carries")
	// ErrDisconnected: the server cannot be reached now, or was lost before it
	// answered. It is not known then whether it did what it was asked to.
	ErrDisconnected = errors.New("bus cannot be reached now")
	// ErrNoResponder: nobody subscribes to the subject of a Request.
	ErrNoResponder = errors.New("nobody answers on this subject")
)

// Message is one message as a handler gets it.
type Message struct {
	Subject string
	// Reply is the subject for an answer, or empty.
	Reply string
	// Data belongs to the handler.
	Data []byte
}

// Bus is one connection. All methods may be called concurrently, and those of
// what it returns too.
//
// While the server cannot be reached, Publish, Request and a log's Append fail
// at once with ErrDisconnected, since a message that comes late is worse than
// one that does not come. What has to do with stored things waits for the
// server until its context ends. Subscriptions, watches, consumers and readers
// stay, and go on when the server is there again.
type Bus interface {
	// Publish sends a message to whoever subscribes now: at most once, in
	// order for one sender and one subscription. It does not wait.
	Publish(subject string, data []byte) error
	// Subscribe calls handle for every message on the subject (dots separate
	// tokens, "*" matches one token, a final ">" the rest), one at a time. It
	// sees what anybody publishes from when Subscribe has returned. Of what
	// waits for a slow handler, all beyond a million messages or 1 GiB is
	// dropped, and that is logged.
	Subscribe(subject string, handle func(Message)) (Subscription, error)
	// Request publishes with a reply subject and waits for one answer, until
	// the context ends or the connection is lost. Without a subscription to
	// the subject it fails with ErrNoResponder.
	Request(ctx context.Context, subject string, data []byte) ([]byte, error)
	// NewInbox returns a subject that nobody else uses.
	NewInbox() string
	// Flush waits until all that was published has reached the server.
	Flush(ctx context.Context) error
	// MaxMessageBytes is the largest message.
	MaxMessageBytes() int64

	// KV opens a bucket, and makes it if needed.
	KV(ctx context.Context, bucket string, opts KVOptions) (KV, error)
	// Queue opens a durable work queue, and makes it if needed.
	Queue(ctx context.Context, name string, opts QueueOptions) (Queue, error)
	// Objects opens a bucket of objects, and makes it if needed.
	Objects(ctx context.Context, bucket string) (Objects, error)
	// Log opens a log, and makes it if needed.
	Log(ctx context.Context, name string, opts LogOptions) (Log, error)

	// Connected tells whether the server can be reached now.
	Connected() bool
	// OnReconnect registers a function that is called each time after the
	// connection was lost and is there again, one function after the other.
	OnReconnect(func())
	// Close sends what was published, ends the connection, its subscriptions
	// and all else that goes on, and waits for handlers under way: it must not
	// be called from one. It is idempotent.
	Close() error
}

// Subscription is interest in a subject.
type Subscription interface {
	// Unsubscribe ends it. Handlers under way go on.
	Unsubscribe() error
}

// KVOptions are how a bucket is made. They replace those of a bucket that is
// there already, as QueueOptions and LogOptions do.
type KVOptions struct {
	// TTL removes entries this long after they were written, give or take a
	// second; 0 never.
	TTL time.Duration
}

// Entry is a key's value.
type Entry struct {
	Key   string
	Value []byte
	// Revision grows with every write to the bucket.
	Revision uint64
	// Deleted is set on the entries of a watch that tell of a removal.
	Deleted bool
}

// KV is a bucket of small values. Keys are letters, digits and any of "-_.=/$".
type KV interface {
	// Get returns a key's entry or ErrNotFound.
	Get(ctx context.Context, key string) (Entry, error)
	// Put writes whatever was there before.
	Put(ctx context.Context, key string, value []byte) (revision uint64, err error)
	// Create writes a key that is not there, else ErrExists.
	Create(ctx context.Context, key string, value []byte) (revision uint64, err error)
	// Update writes if the key's revision is still the given one, else ErrExists.
	Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error)
	// Delete removes a key; one that is not there is no error.
	Delete(ctx context.Context, key string) error
	// Keys returns all keys in order.
	Keys(ctx context.Context) ([]string, error)
	// Watch calls handle for every present entry, then calls ready once (may
	// be nil), then handle for every change, until the context ends or the
	// function returned is called, which does not wait for a call under way.
	// Calls come one at a time; after a lost connection it goes on where it
	// was, and of several changes to a key meanwhile it may see the last only.
	Watch(ctx context.Context, handle func(Entry), ready func()) (stop func(), err error)
}

// QueueOptions are how a work queue is made.
type QueueOptions struct {
	// AckWait is how long a delivered item may stay unanswered before it is
	// delivered again; 30 seconds if 0.
	AckWait time.Duration
	// MaxPending bounds the items that are delivered and unanswered, or put
	// back with a delay that goes on, of all consumers together; 1024 if 0.
	MaxPending int
	// DedupeWindow is how long the id of an item is remembered; 2 minutes if 0.
	DedupeWindow time.Duration
}

// Queue is a durable work queue: an item stays until one consumer says it is done.
type Queue interface {
	// Put adds an item, and returns once it is stored. A second item of the
	// same id within the window is dropped, unless the id is empty.
	Put(ctx context.Context, id string, data []byte) error
	// Consume calls handle for each item, one call at a time, and returns when
	// the context ends, which is no error, or with ErrClosed. handle must not
	// block, and has exactly one of Done and Again called later, from any
	// goroutine. Several consumers, also of other processes, share the items.
	Consume(ctx context.Context, handle func(Item)) error
	// Len is how many items are stored, those being worked on included.
	Len(ctx context.Context) (int, error)
}

// Item is a delivered item of a Queue.
type Item struct {
	Data []byte
	// Deliveries counts from 1.
	Deliveries int
	// Done removes the item from the queue, whoever has it by now; it returns
	// once that is certain. Doing it again is no error.
	Done func(ctx context.Context) error
	// Again puts it back, to be delivered after a delay.
	Again func(delay time.Duration) error
	// Working extends AckWait.
	Working func() error
}

// Objects is a bucket of large values.
type Objects interface {
	// Put stores an object; nobody sees it before it is whole.
	Put(ctx context.Context, key string, r io.Reader) (sizeBytes int64, err error)
	// Get opens an object or returns ErrNotFound. The caller closes it. Reading
	// fails once the context has ended, and where the object is replaced or
	// deleted meanwhile; it never gives parts of two objects.
	Get(ctx context.Context, key string) (io.ReadCloser, error)
	// Delete removes an object; one that is not there is no error.
	Delete(ctx context.Context, key string) error
	// Keys returns all keys in order.
	Keys(ctx context.Context) ([]string, error)
}

// LogOptions bound a log; what is 0 is no bound.
type LogOptions struct {
	MaxAge time.Duration
	// MaxBytes is the size of all records; the oldest go first.
	MaxBytes int64
	// MaxPerSubject bounds the records of one subject.
	MaxPerSubject int64
}

// Record is one record of a Log.
type Record struct {
	Subject string
	Time    time.Time
	Data    []byte
}

// Log keeps recent records by subject.
type Log interface {
	// Append adds a record without waiting for it to be stored.
	Append(subject string, data []byte) error
	// Read calls handle for each record of a subject (wildcards as in
	// Subscribe) since a time, oldest first. With follow it then goes on with
	// new ones until the context ends, which is no error. An error of handle's
	// ends it, and is returned.
	Read(ctx context.Context, subject string, since time.Time, follow bool, handle func(Record) error) error
}
