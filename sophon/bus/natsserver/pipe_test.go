package natsserver

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

func TestABufferedConnPassesEveryByteInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		near, far := net.Pipe()
		conn := newBufferedConn(near)
		writes := rapid.SliceOf(rapid.SliceOfN(rapid.Byte(), 0, 1000)).Draw(t, "writes")
		go func() {
			for _, data := range writes {
				_, _ = far.Write(data)
			}
			_ = far.Close()
		}()
		var r io.Reader = conn
		if rapid.Bool().Draw(t, "one byte at a time") {
			r = iotest.OneByteReader(r)
		}
		have, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(have, bytes.Join(writes, nil)) {
			t.Errorf("read %d bytes, %v", len(have), err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestABufferedConnDoesNotHaveTheOtherEndWaitForReads(t *testing.T) {
	near, far := net.Pipe()
	conn := newBufferedConn(near)
	for range 100 {
		if _, err := far.Write(make([]byte, 100_000)); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := io.CopyN(io.Discard, conn, 100*100_000); err != nil {
		t.Errorf("read %d bytes, %v", n, err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

func TestClosingABufferedConnEndsReads(t *testing.T) {
	near, _ := net.Pipe()
	conn := newBufferedConn(near)
	read := make(chan error, 1)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		read <- err
	}()
	for range 2 {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-read; !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("read: %v", err)
	}
}
