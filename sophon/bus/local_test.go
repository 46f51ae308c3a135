package bus

import (
	"errors"
	"testing"
)

func TestALocalBusKeepsMessagesAndWhatIsStoredApart(t *testing.T) {
	messages, stored := NewMemory(), NewMemory()
	b, other := Local(messages.Connect(), stored.Connect()), Local(messages.Connect(), stored.Connect())
	defer func() {
		if err := errors.Join(b.Close(), other.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	}()
	got := make(chan string, 1)
	if _, err := other.Subscribe("a.*", func(m Message) { got <- string(m.Data) }); err != nil {
		t.Fatal(err)
	}
	if err := b.Publish("a.b", []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if m := <-got; m != "hello" {
		t.Errorf("the message is %q", m)
	}
	kv, err := b.KV(t.Context(), "bucket", KVOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	direct := stored.Connect()
	defer func() { _ = direct.Close() }()
	if kv, err = direct.KV(t.Context(), "bucket", KVOptions{}); err != nil {
		t.Fatal(err)
	}
	if e, err := kv.Get(t.Context(), "k"); err != nil || string(e.Value) != "v" {
		t.Errorf("stored: %q, %v", e.Value, err)
	}
	messages.Cut()
	if b.Connected() {
		t.Error("it counts as connected though messages do not get through")
	}
	messages.Restore()
}
