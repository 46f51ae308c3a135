package bus

import (
	"context"
	"errors"
)

// Local returns a bus that sends messages by one bus and keeps what is stored on
// another: for a platform in one process, whose messages need not go through
// the server that keeps its data. Both belong to the result, which closes them.
func Local(messages, stored Bus) Bus { return &local{Bus: stored, messages: messages} }

// local takes everything from the bus that stores, but for messages.
type local struct {
	Bus
	messages Bus
}

func (l *local) Publish(subject string, data []byte) error { return l.messages.Publish(subject, data) }

func (l *local) Subscribe(subject string, handle func(Message)) (Subscription, error) {
	return l.messages.Subscribe(subject, handle)
}

func (l *local) Request(ctx context.Context, subject string, data []byte) ([]byte, error) {
	return l.messages.Request(ctx, subject, data)
}

func (l *local) NewInbox() string { return l.messages.NewInbox() }

func (l *local) Flush(ctx context.Context) error {
	return errors.Join(l.messages.Flush(ctx), l.Bus.Flush(ctx))
}

func (l *local) MaxMessageBytes() int64 {
	return min(l.messages.MaxMessageBytes(), l.Bus.MaxMessageBytes())
}

func (l *local) Connected() bool { return l.messages.Connected() && l.Bus.Connected() }

func (l *local) OnReconnect(f func()) {
	l.messages.OnReconnect(f)
	l.Bus.OnReconnect(f)
}

func (l *local) Close() error { return errors.Join(l.messages.Close(), l.Bus.Close()) }
