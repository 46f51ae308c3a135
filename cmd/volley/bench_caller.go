package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// echoEvent is what the echo function is called with.
const echoEvent = `{"message":"What is said here comes back.","number":42}`

// signatureReuse is how long a signed request is sent again as it is. Making a
// signature costs the caller more than all else; the server checks each one.
const signatureReuse = time.Second

// invokeTarget is what is called, over connections that are kept open. It is
// lean, since on a small machine the caller's work is at the platform's expense.
type invokeTarget struct {
	name, url string
	// keys sign the requests; nil leaves them unsigned.
	keys *aws.Credentials
	// single, if not nil, lets one request through at a time: the emulator
	// ends when it gets a second one.
	single *sync.Mutex

	mu     sync.Mutex
	idle   []*callerConn
	signed map[string]signedRequest
}

// callerConn is one connection.
type callerConn struct {
	net.Conn
	r *bufio.Reader
}

// signedRequest is a request as it goes over the connection.
type signedRequest struct {
	bytes []byte
	until time.Time
}

// call invokes once. It returns an error unless the event came back.
func (t *invokeTarget) call(ctx context.Context, address string) error {
	if t.single != nil {
		t.single.Lock()
		defer t.single.Unlock()
	}
	request, err := t.request(ctx, address)
	if err != nil {
		return err
	}
	c, err := t.conn(ctx, address)
	if err != nil {
		return err
	}
	if err := c.exchange(request); err != nil {
		_ = c.Close() // the first error tells
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.idle = append(t.idle, c)
	return nil
}

// request returns the bytes of a request.
func (t *invokeTarget) request(ctx context.Context, address string) ([]byte, error) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if s, ok := t.signed[address]; ok && now.Before(s.until) {
		return s.bytes, nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader([]byte(echoEvent)))
	if err != nil {
		return nil, err
	}
	if t.keys != nil {
		sum := sha256.Sum256([]byte(echoEvent))
		if err := v4.NewSigner().SignHTTP(ctx, *t.keys, req, hex.EncodeToString(sum[:]), "lambda", platformRegion, now); err != nil {
			return nil, err
		}
	}
	var b bytes.Buffer
	if err := req.Write(&b); err != nil {
		return nil, err
	}
	if t.signed == nil {
		t.signed = map[string]signedRequest{}
	}
	t.signed[address] = signedRequest{b.Bytes(), now.Add(signatureReuse)}
	return b.Bytes(), nil
}

// conn takes an idle connection, or makes one.
func (t *invokeTarget) conn(ctx context.Context, address string) (*callerConn, error) {
	t.mu.Lock()
	if n := len(t.idle); n > 0 {
		c := t.idle[n-1]
		t.idle = t.idle[:n-1]
		t.mu.Unlock()
		return c, nil
	}
	t.mu.Unlock()
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	return &callerConn{conn, bufio.NewReader(conn)}, nil
}

// exchange sends a request and checks the answer.
func (c *callerConn) exchange(request []byte) error {
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if _, err := c.Write(request); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || string(body) != echoEvent || resp.Header.Get("X-Amz-Function-Error") != "" {
		return fmt.Errorf("status %d: %.200s", resp.StatusCode, body)
	}
	return nil
}

// close closes the idle connections.
func (t *invokeTarget) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.idle {
		_ = c.Close() // nothing is under way
	}
	t.idle = nil
}
