package bus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// reconnectWait is the pause between attempts to reach a lost server.
	reconnectWait = 250 * time.Millisecond
	// dialTimeout bounds one attempt.
	dialTimeout = 2 * time.Second
	// operationTimeout bounds a request to JetStream whose context has no
	// deadline. It starts when the server can be reached.
	operationTimeout = 10 * time.Second
	// retryWait is the pause before what failed is tried again.
	retryWait = 100 * time.Millisecond
	// pingInterval is how often a silent server is asked whether it is there;
	// after two pings without an answer it is lost.
	pingInterval = 5 * time.Second
	// headerBytes is the room that is left in a message for headers.
	headerBytes = 16 << 10
)

// InProcessServer is a NATS server in this process.
type InProcessServer interface {
	// InProcessConn opens a connection to it.
	InProcessConn() (net.Conn, error)
}

// NATSConfig is how ConnectNATS finds a NATS server, and what it makes there.
type NATSConfig struct {
	// URLs are the servers of one cluster ("nats://host:4222", or "tls://");
	// one that answers is used.
	URLs []string
	// InProcess is used instead of URLs if not nil.
	InProcess InProcessServer
	// Name tells the connection from others in the server's monitoring.
	Name string

	// Token, or User and Password, or CredentialsFile (a user's JWT and key)
	// say who connects. None is needed where the server asks for none.
	Token, User, Password, CredentialsFile string
	// TLS is how the server is verified, and the client's own certificate;
	// nil for Go's defaults where a URL says tls.
	TLS *tls.Config

	// Replicas is how many servers of a cluster keep each bucket, queue and
	// log; 1 if 0. With more than one, a KV's Get may answer from a replica
	// that lags a little; writes with Create and Update never do.
	Replicas int
	// Log is told of lost and restored connections, and of what was dropped;
	// nil for silence.
	Log *slog.Logger
}

// natsConn is a connection to a NATS server.
type natsConn struct {
	nc       *nats.Conn
	js       jetstream.JetStream
	replicas int
	log      *slog.Logger
	// ctx ends, because of ErrClosed, with the connection.
	ctx    context.Context
	cancel context.CancelCauseFunc
	// running counts the goroutines of subscriptions, watches and callbacks.
	running sync.WaitGroup

	mu     sync.Mutex
	closed bool
	// link ends, because of ErrDisconnected, when the server is lost, and is
	// replaced when it is there again.
	link        context.Context
	lose        context.CancelCauseFunc
	up          chan struct{} // closed while link goes on
	onReconnect []func()
	// callbacks is held while they run, so that they run one at a time.
	callbacks sync.Mutex
}

// ConnectNATS connects to a NATS server with JetStream whose max_payload is at
// least 8 MiB and 16 KiB. It tries each server once, for up to two seconds;
// from then on a lost connection is established again however long it takes. While it is lost,
// Publish, Append and Request fail at once with ErrDisconnected: a message
// that arrives late is worse than one that does not arrive. The methods of
// buckets, queues and logs wait, until their context ends, for the server. The
// caller closes the connection.
func ConnectNATS(ctx context.Context, cfg NATSConfig) (Bus, error) {
	c := &natsConn{replicas: max(cfg.Replicas, 1), log: cfg.Log}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	c.up = make(chan struct{})
	c.established()
	opts, err := cfg.options(c)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("connect to NATS: %w", context.Cause(ctx))
	}
	where := strings.Join(cfg.URLs, ",")
	if cfg.InProcess != nil {
		where = "this process"
	}
	c.nc, err = nats.Connect(strings.Join(cfg.URLs, ","), opts...)
	if err != nil {
		c.cancel(ErrClosed)
		return nil, fmt.Errorf("connect to NATS at %s: %w", where, err)
	}
	if err := c.check(ctx); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("connect to NATS at %s: %w", where, err)
	}
	return c, nil
}

func (cfg NATSConfig) options(c *natsConn) ([]nats.Option, error) {
	if len(cfg.URLs) == 0 && cfg.InProcess == nil {
		return nil, errors.New("no URL is given")
	}
	opts := []nats.Option{
		nats.Name(cfg.Name),
		nats.Timeout(dialTimeout),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(reconnectWait/4, reconnectWait/4),
		nats.ReconnectBufSize(-1), // nothing is kept to be sent late
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(2),
		// A server that restarts may refuse for a moment.
		nats.IgnoreAuthErrorAbort(),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { c.disconnected(err) }),
		nats.ReconnectHandler(func(*nats.Conn) { c.reconnected() }),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) { c.asyncError(sub, err) }),
	}
	if cfg.Token != "" {
		opts = append(opts, nats.Token(cfg.Token))
	}
	if cfg.User != "" {
		opts = append(opts, nats.UserInfo(cfg.User, cfg.Password))
	}
	if cfg.CredentialsFile != "" {
		opts = append(opts, nats.UserCredentials(cfg.CredentialsFile))
	}
	if cfg.TLS != nil {
		opts = append(opts, nats.Secure(cfg.TLS))
	}
	if cfg.InProcess != nil {
		opts = append(opts, nats.InProcessServer(cfg.InProcess))
	}
	return opts, nil
}

// check refuses servers that cannot do what is needed.
func (c *natsConn) check(ctx context.Context) error {
	if have, want := c.nc.MaxPayload(), int64(defaultMaxMessageBytes+headerBytes); have < want {
		return fmt.Errorf("the server's max_payload is %d bytes, and at least %d are needed: set \"max_payload: %d\" in its configuration",
			have, want, defaultMaxMessageBytes+64<<10)
	}
	var err error
	if c.js, err = jetstream.New(c.nc, jetstream.WithDefaultTimeout(operationTimeout)); err != nil {
		return fmt.Errorf("open JetStream: %w", err)
	}
	if _, err = c.js.AccountInfo(ctx); err != nil {
		return fmt.Errorf("ask for JetStream: %w", err)
	}
	return nil
}

func (c *natsConn) disconnected(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.link.Err() != nil {
		return
	}
	c.log.Warn("lost the NATS server", "error", err)
	c.up = make(chan struct{})
	c.lose(ErrDisconnected)
}

// established makes a new link. It is called with the lock held, or before
// anybody else knows of the connection.
func (c *natsConn) established() {
	c.link, c.lose = context.WithCancelCause(c.ctx)
	close(c.up)
}

func (c *natsConn) reconnected() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.link.Err() == nil {
		return
	}
	c.log.Info("reached the NATS server again", "url", c.nc.ConnectedUrlRedacted())
	c.established()
	c.running.Go(func() {
		c.callbacks.Lock()
		defer c.callbacks.Unlock()
		c.mu.Lock()
		callbacks := c.onReconnect
		c.mu.Unlock()
		for _, f := range callbacks {
			f()
		}
	})
}

func (c *natsConn) asyncError(sub *nats.Subscription, err error) {
	subject := ""
	if sub != nil {
		subject = sub.Subject
	}
	if errors.Is(err, nats.ErrSlowConsumer) {
		c.log.Warn("drop messages for a slow subscription", "subject", subject)
		return
	}
	c.log.Warn("NATS reports an error", "subject", subject, "error", err)
}

// currentLink returns the link, and a channel that is closed when it is there.
func (c *natsConn) currentLink() (context.Context, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.link, c.up
}

// do carries out a request to JetStream: it waits for the server, gives the
// request time, ends it when the server is lost, and tries again what was not
// sent.
func (c *natsConn) do(ctx context.Context, request func(context.Context) error) error {
	for {
		link, up := c.currentLink()
		select {
		case <-up:
		case <-c.ctx.Done():
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrDisconnected, context.Cause(ctx))
		}
		if c.ctx.Err() != nil {
			return ErrClosed
		}
		if link.Err() != nil {
			continue // there is another one by now
		}
		err := c.within(ctx, link, operationTimeout, request)
		if !errors.Is(err, nats.ErrReconnectBufExceeded) {
			return c.translate(err)
		}
		// The connection is lost, and the news of it are on the way.
		if err := pause(ctx, retryWait); err != nil {
			return fmt.Errorf("%w: %w", ErrDisconnected, err)
		}
	}
}

// within runs request with a context that ends with the given one, with the
// link, and after a time unless the given one has a deadline.
func (c *natsConn) within(ctx, link context.Context, timeout time.Duration, request func(context.Context) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, ok := ctx.Deadline(); !ok && timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	bounded, cancel := context.WithCancelCause(ctx)
	defer cancel(context.Canceled)
	defer context.AfterFunc(link, func() { cancel(context.Cause(link)) })()
	err := request(bounded)
	if err != nil && bounded.Err() != nil && errors.Is(err, bounded.Err()) {
		return context.Cause(bounded)
	}
	return err
}

// pause returns after a time, or with an error when the context ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// translate puts the bus's sentinel errors in the place of those of NATS.
func (c *natsConn) translate(err error) error {
	switch {
	case err == nil:
		return nil
	case c.ctx.Err() != nil:
		return ErrClosed
	case errors.Is(err, nats.ErrMaxPayload):
		return ErrTooLarge
	}
	for _, lost := range [...]error{
		nats.ErrReconnectBufExceeded, nats.ErrConnectionReconnecting, nats.ErrDisconnected, nats.ErrConnectionClosed,
	} {
		if errors.Is(err, lost) {
			return ErrDisconnected
		}
	}
	return err
}

func (c *natsConn) Publish(subject string, data []byte) error {
	return c.publish("publish", subject, data)
}

func (c *natsConn) publish(verb, subject string, data []byte) error {
	if err := c.checkMessage(verb, subject, data); err != nil {
		return err
	}
	if err := c.nc.Publish(subject, data); err != nil {
		return fmt.Errorf("%s on %s: %w", verb, subject, c.translate(err))
	}
	return nil
}

func (c *natsConn) checkMessage(verb, subject string, data []byte) error {
	if err := checkSubject(subject); err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	if err := c.checkSize(data); err != nil {
		return fmt.Errorf("%s on %s: %w", verb, subject, err)
	}
	return nil
}

func (c *natsConn) checkSize(data []byte) error {
	if int64(len(data)) > c.MaxMessageBytes() {
		return fmt.Errorf("%d bytes: %w", len(data), ErrTooLarge)
	}
	return nil
}

func (c *natsConn) Request(ctx context.Context, subject string, data []byte) ([]byte, error) {
	if err := c.checkMessage("request", subject, data); err != nil {
		return nil, err
	}
	link, _ := c.currentLink()
	var answer *nats.Msg
	err := c.within(ctx, link, 0, func(ctx context.Context) (err error) {
		answer, err = c.nc.RequestWithContext(ctx, subject, data)
		return err
	})
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return nil, fmt.Errorf("request on %s: %w", subject, ErrNoResponder)
	case err != nil:
		return nil, fmt.Errorf("request on %s: %w", subject, c.translate(err))
	}
	return answer.Data, nil
}

func (c *natsConn) NewInbox() string { return c.nc.NewInbox() }

func (c *natsConn) Flush(ctx context.Context) error {
	if err := c.do(ctx, c.nc.FlushWithContext); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// MaxMessageBytes leaves room for the headers that some messages get.
func (c *natsConn) MaxMessageBytes() int64 { return c.nc.MaxPayload() - headerBytes }

// Connected goes by the link, as everything else does: it does not turn true
// before those who wait for the server go on.
func (c *natsConn) Connected() bool {
	link, _ := c.currentLink()
	return link.Err() == nil
}

func (c *natsConn) OnReconnect(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onReconnect = append(c.onReconnect[:len(c.onReconnect):len(c.onReconnect)], f)
}

func (c *natsConn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel(ErrClosed)
	if c.nc.IsConnected() {
		// What was published so far is sent before the connection ends.
		ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
		defer cancel()
		_ = c.nc.FlushWithContext(ctx) // else it is lost, as any message may be
	}
	c.nc.Close()
	c.running.Wait()
	return nil
}

// goWhileOpen runs f in a goroutine that Close waits for, with a context that
// ends with the given one, and with the connection.
func (c *natsConn) goWhileOpen(ctx context.Context, f func(context.Context)) (stop context.CancelFunc, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	ctx, cancel := context.WithCancelCause(ctx)
	release := context.AfterFunc(c.ctx, func() { cancel(ErrClosed) })
	c.running.Go(func() {
		defer release()
		defer cancel(context.Canceled)
		f(ctx)
	})
	return func() { cancel(context.Canceled) }, nil
}

// runWhileOpen is goWhileOpen for those that wait for f themselves.
func (c *natsConn) runWhileOpen(ctx context.Context, f func(context.Context) error) error {
	done := make(chan error, 1)
	if _, err := c.goWhileOpen(ctx, func(ctx context.Context) { done <- f(ctx) }); err != nil {
		return err
	}
	return <-done
}

// natsSub is a subscription of a natsConn.
type natsSub struct {
	conn *natsConn
	sub  *nats.Subscription
}

func (c *natsConn) Subscribe(subject string, handle func(Message)) (Subscription, error) {
	if err := checkPattern(subject); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	sub, err := c.subscribe(subject, handle)
	if err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", subject, err)
	}
	// Whoever publishes from now on, on whatever connection, is heard. While
	// the server is lost that is so once it is there again.
	if c.nc.IsConnected() {
		ctx, cancel := context.WithTimeout(c.ctx, dialTimeout)
		defer cancel()
		if err := c.nc.FlushWithContext(ctx); err != nil {
			c.log.Debug("subscribed without an answer from the server", "subject", subject, "error", err)
		}
	}
	return &natsSub{c, sub}, nil
}

// subscribe subscribes, and has Close wait for the handler.
func (c *natsConn) subscribe(subject string, handle func(Message)) (*nats.Subscription, error) {
	c.mu.Lock() // not closed until all is set
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	sub, err := c.nc.Subscribe(subject, func(m *nats.Msg) {
		handle(Message{Subject: m.Subject, Reply: m.Reply, Data: m.Data})
	})
	if err != nil {
		return nil, c.translate(err)
	}
	c.running.Add(1)
	sub.SetClosedHandler(func(string) { c.running.Done() })
	if err := sub.SetPendingLimits(maxQueuedMessages, maxQueuedBytes); err != nil {
		return nil, fmt.Errorf("set limits: %w", c.translate(err))
	}
	return sub, nil
}

func (s *natsSub) Unsubscribe() error {
	err := s.sub.Unsubscribe()
	if err == nil || errors.Is(err, nats.ErrBadSubscription) || errors.Is(err, nats.ErrConnectionClosed) {
		return nil
	}
	return fmt.Errorf("unsubscribe from %s: %w", s.sub.Subject, s.conn.translate(err))
}
