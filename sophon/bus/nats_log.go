package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// errEndOfLog ends the reading of a log that is not followed.
var errEndOfLog = errors.New("all records are read")

// natsLog is a JetStream stream with limits.
type natsLog struct {
	conn   *natsConn
	stream string
	prefix string // of the records' subjects
}

func (c *natsConn) Log(ctx context.Context, name string, opts LogOptions) (Log, error) {
	if err := checkName("log", name); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	l := &natsLog{conn: c, stream: "LOG_" + name, prefix: "$L." + name + "."}
	err := c.do(ctx, func(ctx context.Context) error {
		_, err := c.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
			Name:              l.stream,
			Subjects:          []string{l.prefix + ">"},
			Retention:         jetstream.LimitsPolicy,
			Discard:           jetstream.DiscardOld,
			MaxAge:            opts.MaxAge,
			MaxBytes:          orUnlimited(opts.MaxBytes),
			MaxMsgsPerSubject: orUnlimited(opts.MaxPerSubject),
			Replicas:          c.replicas,
			NoAck:             true,
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", name, err)
	}
	return l, nil
}

func orUnlimited(n int64) int64 {
	if n <= 0 {
		return -1
	}
	return n
}

func (l *natsLog) Append(subject string, data []byte) error {
	if err := checkSubject(subject); err != nil {
		return fmt.Errorf("append: %w", err)
	}
	return l.conn.publish("append", l.prefix+subject, data)
}

func (l *natsLog) Read(ctx context.Context, subject string, since time.Time, follow bool, handle func(Record) error) error {
	if err := checkPattern(subject); err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	r := &streamReader{
		conn: l.conn, stream: l.stream, subject: l.prefix + subject,
		policy:    jetstream.DeliverAllPolicy,
		heartbeat: followHeartbeat,
		handle: func(m *nats.Msg, meta *nats.MsgMetadata) error {
			return handle(Record{Subject: strings.TrimPrefix(m.Subject, l.prefix), Time: meta.Timestamp, Data: m.Data})
		},
	}
	if !since.IsZero() {
		r.policy, r.since = jetstream.DeliverByStartTimePolicy, &since
	}
	if !follow {
		r.caughtUp = func() error { return errEndOfLog }
		r.heartbeat = readHeartbeat
	}
	session, err := r.open(ctx)
	if err == nil {
		err = l.conn.runWhileOpen(ctx, func(ctx context.Context) error { return r.run(ctx, session) })
	}
	switch {
	case err == nil, errors.Is(err, errEndOfLog), follow && ctx.Err() != nil && errors.Is(err, context.Cause(ctx)):
		return nil
	case errors.Is(err, ErrClosed), ctx.Err() != nil:
		return fmt.Errorf("read log: %w", err)
	default:
		return err
	}
}
