package bus

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
)

func TestMemoryDropsWhatASlowHandlerCannotTakeAndSaysSo(t *testing.T) {
	var text strings.Builder
	s := NewMemory(WithLog(slog.New(slog.NewTextHandler(&text, nil))))
	s.maxQueuedMessages, s.maxQueuedBytes = 4, 10
	b := s.Connect()
	entered, release, got := make(chan struct{}, 10), make(chan struct{}), make(chan string, 10)
	if _, err := b.Subscribe("x", func(m Message) {
		entered <- struct{}{}
		<-release
		got <- string(m.Data)
	}); err != nil {
		t.Fatal(err)
	}
	publish := func(data ...string) {
		for _, d := range data {
			if err := b.Publish("x", []byte(d)); err != nil {
				t.Fatal(err)
			}
		}
	}
	publish("first")
	<-entered
	publish("12345", "large", "too large", "", "", "too many")
	close(release)
	var have []string
	for range 5 {
		have = append(have, <-got)
	}
	publish("last")
	have = append(have, <-got)
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if want := []string{"first", "12345", "large", "", "", "last"}; !slices.Equal(have, want) {
		t.Errorf("got %q, want %q", have, want)
	}
	if n := strings.Count(text.String(), "drop messages for a slow subscription"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, text.String())
	}
}
