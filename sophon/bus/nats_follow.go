package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// followHeartbeat is the heartbeat of those who read for a long time.
	followHeartbeat = 5 * time.Second
	// readHeartbeat is the heartbeat of those who read to the end of what is
	// there, and so the longest time they wait for what is there no more.
	readHeartbeat = time.Second
	// consumerLife is how long the server keeps a consumer whose reader is gone.
	consumerLife = 30 * time.Second
)

// errStale ends a reading of a stream that has to start anew.
var errStale = errors.New("consumer is gone or has missed a message")

// streamReader reads a stream's messages in order, each once, across lost
// connections and restarts of the server. It makes a consumer on the server,
// and another one from where it was, whenever that one is in doubt.
type streamReader struct {
	conn    *natsConn
	stream  string
	subject string
	// policy and since are where it starts.
	policy jetstream.DeliverPolicy
	since  *time.Time
	// heartbeat is how often the server says that nothing is new; without a
	// message for twice as long the consumer is made anew.
	heartbeat time.Duration

	last uint64 // sequence number in the stream of the newest message
	// handle is called for each message.
	handle func(*nats.Msg, *nats.MsgMetadata) error
	// caughtUp, if not nil, is called once, after the last message that was
	// there when the reader was started. A message that the stream drops before
	// it is sent (by age, say) is not waited for longer than one heartbeat.
	caughtUp func() error
	// idle, if not nil, is called when the server says that nothing is new.
	idle     func() error
	told     bool
	received uint64
	initial  uint64
}

// run reads until the context ends or handle or caughtUp returns an error, and
// returns that error or the context's cause.
func (r *streamReader) run(ctx context.Context, s *streamSession) error {
	for {
		err := s.read(ctx, r)
		s.end()
		if !errors.Is(err, errStale) {
			return err
		}
		for {
			s, err = r.open(ctx)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			r.conn.log.Debug("resume reading stream", "stream", r.stream, "error", err)
			if err := pause(ctx, retryWait); err != nil {
				return err
			}
		}
	}
}

// streamSession is one consumer of a streamReader.
type streamSession struct {
	conn    *natsConn
	stream  string
	name    string
	sub     *nats.Subscription
	link    context.Context
	next    uint64 // sequence number in the consumer of the next message
	waiting uint64 // messages that were there when it was made
}

// open makes a consumer that goes on where the reader is.
func (r *streamReader) open(ctx context.Context) (*streamSession, error) {
	c := r.conn
	var s *streamSession
	err := c.do(ctx, func(ctx context.Context) error {
		link, _ := c.currentLink()
		sub, err := c.nc.SubscribeSync(c.nc.NewInbox())
		if err != nil {
			return err
		}
		if err := sub.SetPendingLimits(maxQueuedMessages, maxQueuedBytes); err != nil {
			return err
		}
		cfg := jetstream.ConsumerConfig{
			DeliverSubject:    sub.Subject,
			DeliverPolicy:     r.policy,
			OptStartTime:      r.since,
			FilterSubject:     r.subject,
			AckPolicy:         jetstream.AckNonePolicy,
			FlowControl:       true,
			IdleHeartbeat:     r.heartbeat,
			InactiveThreshold: consumerLife,
			MemoryStorage:     true,
			Replicas:          1,
		}
		if r.last > 0 {
			cfg.DeliverPolicy = jetstream.DeliverByStartSequencePolicy
			cfg.OptStartSeq, cfg.OptStartTime = r.last+1, nil
		}
		consumer, err := c.js.CreateOrUpdatePushConsumer(ctx, r.stream, cfg)
		if err != nil {
			_ = sub.Unsubscribe()
			return err
		}
		info := consumer.CachedInfo()
		s = &streamSession{
			conn: c, stream: r.stream, name: info.Name, sub: sub, link: link, next: 1,
			waiting: info.NumPending + info.Delivered.Consumer,
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", r.stream, err)
	}
	return s, nil
}

// read hands on messages until there is a reason not to. It returns errStale
// if the reader is to go on with another consumer.
func (s *streamSession) read(ctx context.Context, r *streamReader) error {
	if r.last == 0 {
		r.received, r.initial = 0, s.waiting
	}
	if err := r.catchUp(s.waiting == 0); err != nil {
		return err
	}
	both, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.link, cancel)()
	for {
		m, err := s.receive(both, 2*r.heartbeat)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return errStale
		}
		if m.Header.Get("Status") != "" {
			stalled, err := s.status(m)
			if err != nil {
				return err
			}
			if err := r.catchUp(!stalled); err != nil {
				return err
			}
			if r.idle != nil {
				if err := r.idle(); err != nil {
					return err
				}
			}
			continue
		}
		meta, err := m.Metadata()
		if err != nil || meta.Sequence.Consumer != s.next {
			return errStale
		}
		s.next++
		if err := r.handle(m, meta); err != nil {
			return err
		}
		r.last = meta.Sequence.Stream
		r.received++
		if err := r.catchUp(meta.NumPending == 0 || r.received >= r.initial); err != nil {
			return err
		}
	}
}

// catchUp tells once that all that was there has been handled.
func (r *streamReader) catchUp(done bool) error {
	if !done || r.told || r.caughtUp == nil {
		return nil
	}
	r.told = true
	return r.caughtUp()
}

// receive returns the next message, or an error if there is none for some time.
func (s *streamSession) receive(ctx context.Context, timeout time.Duration) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return s.sub.NextMsgWithContext(ctx)
}

// status takes in a message of the server's own: a heartbeat, which says that
// there is nothing to send, or the question whether we keep up (stalled), in
// which case there may be.
func (s *streamSession) status(m *nats.Msg) (stalled bool, err error) {
	if m.Header.Get("Status") != "100" {
		return false, errStale
	}
	ask := m.Reply
	if ask == "" {
		ask = m.Header.Get("Nats-Consumer-Stalled")
	}
	if ask != "" {
		if err := s.conn.nc.Publish(ask, nil); err != nil {
			return false, errStale
		}
	}
	if last := m.Header.Get("Nats-Last-Consumer"); last != "" {
		if n, err := strconv.ParseUint(last, 10, 64); err != nil || n >= s.next {
			return false, errStale
		}
	}
	return ask != "", nil
}

// end removes the consumer, for which nobody waits: the server removes it by
// itself if this does not reach it.
func (s *streamSession) end() {
	_ = s.sub.Unsubscribe()
	if s.link.Err() == nil {
		_ = s.conn.nc.Publish("$JS.API.CONSUMER.DELETE."+s.stream+"."+s.name, nil)
	}
}
