//go:build unix

package main

import (
	"errors"
	"io"
	"net/http"
	"net/netip"
	"testing"

	"github.com/volley-run/volley/sandbox/agent/frame"
)

// reply gives the function's answer to an event.
func (h *host) reply(t *testing.T, id string) {
	t.Helper()
	if status, _, body := h.call(t, "POST", runtimePath+"invocation/"+id+"/response", `"x"`); status != 202 {
		t.Fatalf("status %d: %s", status, body)
	}
	h.next(t, frame.TypeResponse)
}

// ask asks for an event as the function, and returns where its header arrives.
func (h *host) ask(t *testing.T) <-chan http.Header {
	t.Helper()
	headers := make(chan http.Header, 1)
	go func() {
		_, header, _ := h.call(t, "GET", runtimePath+"invocation/next", "")
		headers <- header
	}()
	return headers
}

func (h *host) send(t *testing.T, id string) {
	t.Helper()
	if err := h.enc.Event(&frame.Event{Budget: 60e6, ID: id}); err != nil {
		t.Fatal(err)
	}
}

func TestTheFirstEventAfterARestoreSaysSo(t *testing.T) {
	h := newHost(t)
	headers := h.ask(t)
	h.next(t, frame.TypeReady)
	network := &frame.Network{Address: netip.MustParseAddr("10.77.0.2")}
	if err := h.enc.Restore(&frame.Restore{ID: "00000000-0000-0000-0000-000000000001", Network: network}); err != nil {
		t.Fatal(err)
	}
	if body := h.next(t, frame.TypeRestored); len(body) > 0 {
		t.Fatalf("error %q", body)
	}
	for _, want := range [][3]string{{"00000000-0000-0000-0000-000000000001", "10.77.0.2", ""}, {}} {
		h.send(t, "id")
		header := <-headers
		if got := [3]string{header.Get("Volley-Restored"), header.Get("Volley-Address"), header.Get("Volley-Address6")}; got != want {
			t.Errorf("the restored machine's id and addresses are %q, want %q", got, want)
		}
		h.reply(t, "id")
		headers = h.ask(t)
	}
	h.send(t, "last")
	<-headers
}

func TestABadRestoreEndsTheSession(t *testing.T) {
	for name, id := range map[string]string{"no id": "", "an id that breaks a header": "a\r\nb"} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			if err := h.enc.Restore(&frame.Restore{ID: id}); err != nil {
				t.Fatal(err)
			}
			if body := h.next(t, frame.TypeRestored); len(body) == 0 {
				t.Error("it is taken")
			}
			if e := <-h.s.ending; e.Reason != frame.ReasonShutdown {
				t.Errorf("exit %+v", e)
			}
		})
	}
}

func TestQuietComesOnceTheFunctionWaits(t *testing.T) {
	h := newHost(t)
	headers := h.ask(t)
	h.next(t, frame.TypeReady)
	h.send(t, "id")
	<-headers
	if err := h.enc.Quiesce(&frame.Quiesce{Number: 7}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.s.logs.outputs[0].remote.WriteString("a line without an end"); err != nil {
		t.Fatal(err)
	}
	quiet := func(number uint64) {
		t.Helper()
		q, err := frame.ParseQuiet(h.next(t, frame.TypeQuiet))
		if err != nil || q.Number != number {
			t.Fatalf("%+v, error %v", q, err)
		}
	}
	if status, _, _ := h.call(t, "POST", runtimePath+"invocation/id/response", `"x"`); status != 202 {
		t.Fatalf("status %d", status)
	}
	h.next(t, frame.TypeLog)
	h.next(t, frame.TypeResponse)
	headers = h.ask(t)
	quiet(7)
	if err := h.enc.Quiesce(&frame.Quiesce{Number: 8}); err != nil {
		t.Fatal(err)
	}
	quiet(8)
	h.send(t, "id")
	<-headers
}

// pipeEnd is a stream in memory.
type pipeEnd struct {
	io.Reader
	io.WriteCloser
}

func TestAConversationGoesOnOverTheNextStream(t *testing.T) {
	type end struct{ in, out *io.PipeWriter }
	ends := make(chan *pipeEnd, 2)
	var hosts []end
	for range 2 {
		r, w := io.Pipe()
		back, out := io.Pipe()
		hosts = append(hosts, end{in: w, out: out})
		go func() { _, _ = io.Copy(io.Discard, back) }()
		ends <- &pipeEnd{r, out}
	}
	closed := errors.New("closed")
	close(ends)
	s := &streams{accept: func() (io.ReadWriteCloser, error) {
		if e, ok := <-ends; ok {
			return e, nil
		}
		return nil, closed
	}}
	if _, err := s.Write([]byte("x")); err == nil {
		t.Error("a write before the host has connected is taken")
	}
	go func() {
		for i, h := range hosts {
			_ = frame.NewEncoder(h.in).Encode(frame.TypeCancel, []byte{byte('a' + i)})
			_ = h.in.CloseWithError(errors.New("connection reset by peer"))
		}
	}()
	dec := frame.NewDecoder(s)
	for _, want := range []string{"a", "b"} {
		typ, body, err := dec.Next()
		if err != nil || typ != frame.TypeCancel || string(body) != want {
			t.Fatalf("%q %q, error %v", typ, body, err)
		}
		if _, err := s.Write([]byte("x")); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := dec.Next(); !errors.Is(err, closed) {
		t.Errorf("error %v", err)
	}
}
