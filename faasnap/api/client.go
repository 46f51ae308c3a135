package api

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/volley-run/volley/internal/sys"
)

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Client speaks to a Server. Its methods may be called concurrently. An answer
// that is an error is an *Error.
type Client struct {
	http *http.Client
}

// NewClient returns a client of the Server at a unix socket. The caller closes
// it.
func NewClient(socket string) *Client {
	return newClient(func(ctx context.Context) (net.Conn, error) {
		return sys.DialUnix(ctx, socket)
	})
}

func newClient(dial func(context.Context) (net.Conn, error)) *Client {
	return &Client{http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}}}
}

// Close closes connections that are idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// do sends a request, and makes errors of answers that are some.
func (c *Client) do(ctx context.Context, method, path, accept string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://volley"+path, body)
	if err != nil {
		return nil, fmt.Errorf("call FaaSnap: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("call FaaSnap: %w", err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	e := &Error{Code: CodeInternal}
	if err := json.NewDecoder(resp.Body).Decode(e); err != nil || e.Message == "" {
		e.Message = "HTTP status " + resp.Status
	}
	return nil, e
}

// Call sends body, unless it is nil, as JSON, and reads the answer into result,
// which may be nil, or a *[]byte for an answer that is no JSON.
func (c *Client) Call(ctx context.Context, method, path string, body, result any) error {
	sent, err := encode(body)
	if err != nil {
		return err
	}
	resp, err := c.do(ctx, method, path, "", sent)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch into := result.(type) {
	case nil:
		return nil
	case *[]byte:
		if *into, err = io.ReadAll(resp.Body); err != nil {
			return fmt.Errorf("read FaaSnap's answer: %w", err)
		}
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(result); err != nil {
		return fmt.Errorf("read FaaSnap's answer: %w", err)
	}
	return nil
}

func encode(body any) (io.Reader, error) {
	if body == nil {
		return nil, nil
	}
	text, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("call FaaSnap: %w", err)
	}
	return bytes.NewReader(text), nil
}

// Long is Call for what takes long. progress is told each step as it begins.
func (c *Client) Long(ctx context.Context, method, path string, body any, progress func(step string)) (Event, error) {
	sent, err := encode(body)
	if err != nil {
		return Event{}, err
	}
	resp, err := c.do(ctx, method, path, eventStream, sent)
	if err != nil {
		return Event{}, err
	}
	defer resp.Body.Close()
	for d := json.NewDecoder(resp.Body); ; {
		var e Event
		switch err := d.Decode(&e); {
		case err != nil && ctx.Err() != nil:
			return e, context.Cause(ctx)
		case err != nil:
			return e, fmt.Errorf("read FaaSnap's answer: %w: it has ended", err)
		case e.Error != nil:
			return e, e.Error
		case e.Step == "":
			return e, nil
		}
		progress(e.Step)
	}
}

// Invocation is how an invocation ended.
type Invocation struct {
	Payload       []byte
	RequestID     string
	FunctionError string
	Mode          string
	Log           []byte
	// Start is how long the machine took to start, Run how long the function
	// ran, and Total both and what is between.
	Start, Run, Total time.Duration
	Host              HostFigures
	// FetchedBytes is how much came from an object store for the machine.
	FetchedBytes int64
}

// Invoke runs an invocation: path is that of invokeVM or invokeFunction, with
// its parameters.
func (c *Client) Invoke(ctx context.Context, path string, event []byte) (*Invocation, error) {
	resp, err := c.do(ctx, http.MethodPost, path, "", bytes.NewReader(event))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	h := resp.Header
	in := &Invocation{RequestID: h.Get(HeaderRequestID), FunctionError: h.Get(HeaderFunctionError), Mode: h.Get(HeaderMode)}
	if in.Payload, err = io.ReadAll(resp.Body); err != nil {
		return nil, fmt.Errorf("read FaaSnap's answer: %w", err)
	}
	in.Log, _ = base64.StdEncoding.DecodeString(h.Get(HeaderLogResult))
	for _, n := range []struct {
		header string
		into   *int64
	}{{HeaderMajorFaults, &in.Host.MajorFaults}, {HeaderMinorFaults, &in.Host.MinorFaults}, {HeaderResidentBytes, &in.Host.ResidentBytes}, {HeaderFetchedBytes, &in.FetchedBytes}} {
		*n.into, _ = strconv.ParseInt(h.Get(n.header), 10, 64)
	}
	for part := range strings.SplitSeq(h.Get("Server-Timing"), ",") {
		name, ms, _ := strings.Cut(strings.TrimSpace(part), ";dur=")
		value, _ := strconv.ParseFloat(ms, 64)
		d := time.Duration(value * float64(time.Millisecond))
		switch name {
		case "start":
			in.Start = d
		case "run":
			in.Run = d
		case "total":
			in.Total = d
		}
	}
	return in, nil
}

// Local returns a client of a handler in this process, without a socket. close
// ends both the client and requests that are under way.
func Local(h http.Handler) (c *Client, close func() error) {
	l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	var requests sync.WaitGroup
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		defer requests.Done()
		h.ServeHTTP(w, r)
	})}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	c = newClient(l.dial)
	return c, func() error {
		c.Close()
		err := srv.Close()
		if end := <-ended; !errors.Is(end, http.ErrServerClosed) {
			err = errors.Join(err, end)
		}
		requests.Wait() // they clean up after themselves
		return err
	}
}

// pipeListener listens within a process.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case l.conns <- there:
		return here, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Accept implements net.Listener.
func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. The http.Server calls it once.
func (l *pipeListener) Close() error {
	close(l.closed)
	return nil
}

// Addr implements net.Listener.
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }
