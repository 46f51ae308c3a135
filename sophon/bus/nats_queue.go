package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// queueConsumer is the durable consumer that all share.
	queueConsumer = "workers"
	// maxFetch bounds the items that a consumer has asked for.
	maxFetch = 256
)

// natsQueue is a JetStream stream with work queue retention.
type natsQueue struct {
	conn     *natsConn
	name     string
	subject  string
	fetch    int
	stream   jetstream.Stream
	consumer jetstream.Consumer
}

func (c *natsConn) Queue(ctx context.Context, name string, opts QueueOptions) (Queue, error) {
	if err := checkName("queue", name); err != nil {
		return nil, fmt.Errorf("open queue: %w", err)
	}
	opts = opts.withDefaults()
	q := &natsQueue{conn: c, name: name, subject: "$Q." + name, fetch: min(opts.MaxPending, maxFetch)}
	err := c.do(ctx, func(ctx context.Context) (err error) {
		q.stream, err = c.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
			Name:       "QUEUE_" + name,
			Subjects:   []string{q.subject},
			Retention:  jetstream.WorkQueuePolicy,
			Duplicates: opts.DedupeWindow,
			Replicas:   c.replicas,
		})
		if err != nil {
			return err
		}
		q.consumer, err = q.stream.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
			Durable:       queueConsumer,
			AckPolicy:     jetstream.AckExplicitPolicy,
			AckWait:       opts.AckWait,
			MaxAckPending: opts.MaxPending,
			MaxDeliver:    -1,
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open queue %s: %w", name, err)
	}
	return q, nil
}

func (q *natsQueue) Put(ctx context.Context, id string, data []byte) error {
	err := q.conn.checkSize(data)
	if err == nil {
		err = q.conn.do(ctx, func(ctx context.Context) error {
			var opts []jetstream.PublishOpt
			if id != "" {
				opts = append(opts, jetstream.WithMsgID(id))
			}
			_, err := q.conn.js.Publish(ctx, q.subject, data, opts...)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("put item %s: %w", id, err)
	}
	return nil
}

func (q *natsQueue) Consume(ctx context.Context, handle func(Item)) error {
	err := q.conn.runWhileOpen(ctx, func(ctx context.Context) error {
		for {
			err := q.conn.do(ctx, func(ctx context.Context) error { return ctx.Err() }) // be connected
			if err == nil {
				err = q.consume(ctx, handle)
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			q.conn.log.Warn("consume queue again", "queue", q.name, "error", err)
			if err := pause(ctx, retryWait); err != nil {
				return err
			}
		}
	})
	if errors.Is(err, ErrClosed) {
		return fmt.Errorf("consume: %w", err)
	}
	return nil
}

// consume hands on items until the context ends or the consumer fails.
func (q *natsQueue) consume(ctx context.Context, handle func(Item)) error {
	items, err := q.consumer.Messages(
		jetstream.PullMaxMessages(q.fetch),
		jetstream.WithMessagesErrOnMissingHeartbeat(false),
	)
	if err != nil {
		return err
	}
	defer items.Stop()
	// What has come already, and is not handed on any more, goes back at once.
	defer context.AfterFunc(ctx, items.Drain)()
	for {
		m, err := items.Next()
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			_ = m.Nak() // else it goes back after AckWait
			continue
		}
		handle(q.item(m))
	}
}

func (q *natsQueue) item(m jetstream.Msg) Item {
	deliveries := 1
	if meta, err := m.Metadata(); err == nil {
		deliveries = int(meta.NumDelivered)
	}
	return Item{
		Data:       m.Data(),
		Deliveries: deliveries,
		Done: func(ctx context.Context) error {
			if err := q.done(ctx, m); err != nil {
				return fmt.Errorf("take done item out of the queue: %w", err)
			}
			return nil
		},
		Again: func(delay time.Duration) error {
			if err := m.NakWithDelay(max(delay, 0)); err != nil {
				return fmt.Errorf("put item back: %w", q.conn.translate(err))
			}
			return nil
		},
		Working: func() error {
			if err := m.InProgress(); err != nil {
				return fmt.Errorf("extend time for item: %w", q.conn.translate(err))
			}
			return nil
		},
	}
}

// done acknowledges a message and waits for the server to say so. It may be
// sent again as often as needed.
func (q *natsQueue) done(ctx context.Context, m jetstream.Msg) error {
	return q.conn.do(ctx, func(ctx context.Context) error {
		_, err := q.conn.nc.RequestWithContext(ctx, m.Reply(), []byte("+ACK"))
		return err
	})
}

func (q *natsQueue) Len(ctx context.Context) (int, error) {
	var n int
	err := q.conn.do(ctx, func(ctx context.Context) error {
		info, err := q.stream.Info(ctx)
		if err == nil {
			n = int(info.State.Msgs)
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("count items: %w", err)
	}
	return n, nil
}
