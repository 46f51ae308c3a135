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

// Bus is one connection. All methods may be called concurrently.
type Bus interface {
	// Publish sends a message to whoever subscribes now: at most once, in
	// order for one sender and one subscription. It does not wait.
	Publish(subject string, data []byte) error
	// Subscribe calls handle for every message on the subject (dots separate
	// tokens, "*" matches one token, a final ">" the rest), one at a time.
	Subscribe(subject string, handle func(Message)) (Subscription, error)
	// Request publishes with a reply subject and waits for one answer.
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
	// connection was lost and is there again.
	OnReconnect(func())
	// Close ends the connection and its subscriptions. It is idempotent.
	Close() error
}

// Subscription is interest in a subject.
type Subscription interface {
	// Unsubscribe ends it. Handlers under way go on.
	Unsubscribe() error
}

// KVOptions are how a bucket is made.
type KVOptions struct {
	// TTL removes entries this long after they were written; 0 never.
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
	// function returned is called. Calls come one at a time; after a lost
	// connection it goes on where it was.
	Watch(ctx context.Context, handle func(Entry), ready func()) (stop func(), err error)
}

// QueueOptions are how a work queue is made.
type QueueOptions struct {
	// AckWait is how long a delivered item may stay unanswered before it is
	// delivered again.
	AckWait time.Duration
	// MaxPending bounds the items that are delivered and unanswered.
	MaxPending int
	// DedupeWindow is how long the id of an item is remembered.
	DedupeWindow time.Duration
}

// Queue is a durable work queue: an item stays until one consumer says it is done.
type Queue interface {
	// Put adds an item, and returns once it is stored. A second item of the
	// same id within the window is dropped.
	Put(ctx context.Context, id string, data []byte) error
	// Consume calls handle for each item until the context ends; handle must
	// not block, and calls exactly one of the item's answers later, from any
	// goroutine.
	Consume(ctx context.Context, handle func(Item)) error
	// Len is how many items are stored, those being worked on included.
	Len(ctx context.Context) (int, error)
}

// Item is a delivered item of a Queue.
type Item struct {
	Data []byte
	// Deliveries counts from 1.
	Deliveries int
	// Done removes the item from the queue; it returns once that is certain.
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
	// Get opens an object or returns ErrNotFound. The caller closes it.
	Get(ctx context.Context, key string) (io.ReadCloser, error)
	// Delete removes an object; one that is not there is no error.
	Delete(ctx context.Context, key string) error
	// Keys returns all keys in order.
	Keys(ctx context.Context) ([]string, error)
}

// LogOptions bound a log.
type LogOptions struct {
	MaxAge time.Duration
	// MaxBytes is the size of all records; the oldest go first.
	MaxBytes int64
	// MaxPerSubject bounds the records of one subject; 0 is no bound.
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
	// new ones until the context ends, which is no error.
	Read(ctx context.Context, subject string, since time.Time, follow bool, handle func(Record) error) error
}
