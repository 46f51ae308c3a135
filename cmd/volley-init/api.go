//go:build unix

package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"unicode/utf8"

	"github.com/volley-run/volley/sandbox/agent/frame"
)

const (
	// basePath is what the paths of the Runtime API begin with.
	basePath = "/2018-06-01/"
	// keepBytes is how large a connection's buffers may stay.
	keepBytes = 256 << 10
	// pieceBytes is how much of a streamed answer is passed on at once.
	pieceBytes = 32 << 10
	// maxErrorBytes bounds what a function reports of an error.
	maxErrorBytes = frame.MaxResponse
	// maxIgnored bounds what is read of a body that is too long, so that the
	// client gets to hear that it is.
	maxIgnored = 64 << 20
	// typeTooLarge is the type of the error for an answer that is too long.
	typeTooLarge = "Function.ResponseSizeTooLarge"
)

// serve answers the function's requests until the listener is closed.
func serve(listener net.Listener, s *session) {
	for {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		if !fromSameAddress(c) {
			c.Close()
			continue
		}
		go newConnection(c, s).serve()
	}
}

// listenShortcut listens where Volley's own runtime clients connect instead of
// to a port: a TCP connection to oneself is four times the code in the kernel,
// which an emulated processor has to translate after every restore.
func listenShortcut() (net.Listener, error) {
	l, err := net.Listen("unix", shortcutFile)
	if err == nil {
		err = os.Chmod(shortcutFile, 0o666)
	}
	if err != nil {
		return nil, fmt.Errorf("serve the Runtime API: %w", err)
	}
	return l, nil
}

// fromSameAddress says whether a connection comes from the address it goes to.
// Loopback always does. On a job's network loopback is the sandbox's own
// address there, which its neighbours can reach; the invocations are not for them.
func fromSameAddress(c net.Conn) bool {
	if _, ok := c.(*net.UnixConn); ok {
		return true
	}
	local, ok := c.LocalAddr().(*net.TCPAddr)
	remote, ok2 := c.RemoteAddr().(*net.TCPAddr)
	return ok && ok2 && local.IP.Equal(remote.IP)
}

// connection is one of the function's connections.
type connection struct {
	net.Conn
	s *session
	r *reader
	// out is the response under construction, body the request's.
	out  []byte
	body []byte
	// closing says that the connection ends after this response.
	closing bool
}

func newConnection(c net.Conn, s *session) *connection {
	conn := &connection{Conn: c, s: s, r: newReader(c)}
	conn.r.continueWith = func() error {
		_, err := c.Write([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
		return err
	}
	return conn
}

func (c *connection) serve() {
	defer c.Close()
	for !c.closing {
		q, err := c.r.next()
		if err != nil {
			if errors.Is(err, errMalformed) {
				c.closing = true
				_ = c.refuse(400, "InvalidRequest", err.Error())
			}
			return
		}
		c.closing = q.closing
		if err := c.handle(q); err != nil {
			return
		}
		if !c.skipBody() {
			return
		}
	}
}

// skipBody reads what is left of a body. It returns false if that is too much.
func (c *connection) skipBody() bool {
	if c.r.ended {
		return true
	}
	if c.r.req.expecting {
		return false // it was not sent, and will not be
	}
	n, err := io.Copy(io.Discard, io.LimitReader(c.r, maxIgnored))
	return err == nil && n < maxIgnored
}

// handle answers one request. An error ends the connection.
func (c *connection) handle(q *request) error {
	path, ok := bytes.CutPrefix(q.path, []byte(basePath))
	if !ok {
		return c.refuse(404, "NotFound", "no such path")
	}
	path, _, _ = bytes.Cut(path, []byte{'?'})
	post := string(q.method) == "POST"
	switch {
	case string(path) == "runtime/invocation/next" && string(q.method) == "GET":
		return c.next()
	case string(path) == "runtime/init/error" && post:
		return c.initError(q)
	case string(path) == "ping" && string(q.method) == "GET":
		return c.respond(200, "pong")
	}
	if rest, ok := bytes.CutPrefix(path, []byte("runtime/invocation/")); ok && post {
		id, what, _ := bytes.Cut(rest, []byte{'/'})
		switch string(what) {
		case "response":
			return c.response(q, id)
		case "error":
			return c.invocationError(q, id)
		}
	}
	return c.refuse(404, "NotFound", "no such path")
}

// next gives the function its next event.
func (c *connection) next() error {
	inv, err := c.s.next()
	switch {
	case errors.Is(err, errOutOfTurn):
		return c.refuse(403, "InvalidStateTransition", err.Error())
	case err != nil:
		return err
	}
	b := append(c.out[:0], "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nLambda-Runtime-Aws-Request-Id: "...)
	b = append(b, inv.ID...)
	b = append(b, "\r\nLambda-Runtime-Deadline-Ms: "...)
	b = strconv.AppendInt(b, inv.Deadline/1000, 10)
	b = append(b, "\r\nLambda-Runtime-Invoked-Function-Arn: "...)
	b = append(b, c.s.boot.ARN...)
	if inv.TraceID != "" {
		b = append(b, "\r\nLambda-Runtime-Trace-Id: "...)
		b = append(b, inv.TraceID...)
	}
	if inv.instance != "" {
		b = append(b, "\r\nVolley-Restored: "...)
		b = append(b, inv.instance...)
		if inv.network != nil {
			b = appendAddresses(b, inv.network)
		}
	}
	if len(inv.ClientContext) > 0 {
		b = append(b, "\r\nLambda-Runtime-Client-Context: "...)
		b = appendHeaderJSON(b, inv.ClientContext)
	}
	b = append(b, "\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(inv.Payload)), 10)
	b = append(b, "\r\n\r\n"...)
	if len(inv.Payload) <= keepBytes {
		b = append(b, inv.Payload...)
		c.out = b
		_, err = c.Write(b)
	} else {
		c.out = b
		parts := net.Buffers{b, inv.Payload}
		_, err = parts.WriteTo(c.Conn)
	}
	if err != nil {
		c.s.giveBack(inv)
	}
	return err
}

// appendHeaderJSON appends JSON in a form that a header can carry: one line,
// and ASCII only, as clients differ in what they take other bytes for.
func appendHeaderJSON(b, json []byte) []byte {
	for len(json) > 0 {
		r, size := utf8.DecodeRune(json)
		json = json[size:]
		switch {
		case r < ' ' || r == 0x7f:
			b = append(b, ' ') // only white space may be bare in JSON
		case r < utf8.RuneSelf:
			b = append(b, byte(r))
		case r > 0xffff:
			r -= 0x10000
			b = fmt.Appendf(b, `\u%04x\u%04x`, 0xd800+(r>>10), 0xdc00+(r&0x3ff))
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
	}
	return b
}

// errTooLong says that a body is over its limit.
var errTooLong = errors.New("the body is too long")

// readBody reads a body of at most limit bytes. It is valid until the next.
func (c *connection) readBody(limit int) ([]byte, error) {
	if c.r.req.length > int64(limit) {
		return nil, errTooLong
	}
	if cap(c.body) > keepBytes && c.r.req.length <= keepBytes {
		c.body = nil
	}
	b := c.body[:0]
	if n := int(c.r.req.length); cap(b) < n {
		b = make([]byte, 0, n)
	}
	for {
		if len(b) == cap(b) {
			if c.r.ended {
				break
			}
			b = append(b, 0)[:len(b)]
		}
		// One byte more than the limit tells that it is over.
		n, err := c.r.Read(b[len(b):min(cap(b), limit+1)])
		b = b[:len(b)+n]
		if len(b) > limit {
			return nil, errTooLong
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	c.body = b
	return b, nil
}

// response takes the answer to an event.
func (c *connection) response(q *request, id []byte) error {
	inv := c.s.running(id)
	if inv == nil {
		return c.refuseID()
	}
	if len(q.responseMode) > 0 {
		if !is(q.responseMode, "streaming") {
			const message = "Invalid function response mode"
			c.s.fail(inv, "Runtime.InvalidResponseModeHeader", errorJSON("Runtime.InvalidResponseModeHeader", message))
			return c.refuse(400, "InvalidFunctionResponseMode", message)
		}
		return c.stream(q, inv)
	}
	body, err := c.readBody(frame.MaxResponse)
	switch {
	case errors.Is(err, errTooLong):
		c.s.fail(inv, typeTooLarge, tooLarge(frame.MaxResponse))
		// A client that is still sending would not look at an answer.
		if !c.skipBody() {
			c.closing = true
		}
		return c.refuse(413, "RequestEntityTooLarge", fmt.Sprintf("Exceeded maximum allowed payload size (%d bytes).", frame.MaxResponse))
	case errors.Is(err, errMalformed):
		return c.refuseMalformed(err)
	case err != nil:
		return err
	}
	if kind, report := c.trailers(q); kind != "" {
		return c.accept(c.s.fail(inv, kind, report))
	}
	return c.accept(c.s.answer(inv, string(q.contentType), body))
}

// stream takes an answer in pieces.
func (c *connection) stream(q *request, inv *invocation) error {
	if !c.s.beginStream(inv, string(q.contentType)) {
		return c.refuseID()
	}
	if cap(c.body) < pieceBytes {
		c.body = make([]byte, pieceBytes)
	}
	for total := 0; ; {
		n, err := c.r.Read(c.body[:pieceBytes])
		if total += n; total > frame.MaxStream {
			c.s.endStream(inv, typeTooLarge, tooLarge(frame.MaxStream))
			c.closing = true
			return c.refuse(413, "RequestEntityTooLarge", fmt.Sprintf("Exceeded maximum allowed payload size (%d bytes).", frame.MaxStream))
		}
		if n > 0 {
			c.s.piece(inv, c.body[:n])
		}
		if errors.Is(err, io.EOF) {
			kind, report := c.trailers(q)
			c.s.endStream(inv, kind, report)
			return c.accept(true)
		}
		if err != nil {
			const kind, message = "Runtime.TruncatedResponse", "The streamed response broke off"
			c.s.endStream(inv, kind, errorJSON(kind, message))
			if errors.Is(err, errMalformed) {
				return c.refuseMalformed(err)
			}
			return err
		}
	}
}

// trailers returns the error that a runtime reports after an answer, if it
// does.
func (c *connection) trailers(q *request) (kind string, report []byte) {
	if len(q.errorType) == 0 {
		return "", nil
	}
	report, err := base64.StdEncoding.DecodeString(string(q.errorBody))
	if err != nil || len(report) == 0 {
		report = errorJSON(string(q.errorType), "")
	}
	return string(q.errorType), report
}

// invocationError takes an error instead of an answer.
func (c *connection) invocationError(q *request, id []byte) error {
	inv := c.s.running(id)
	if inv == nil {
		return c.refuseID()
	}
	kind, report, err := c.report(q)
	if err != nil {
		if errors.Is(err, errMalformed) {
			return c.refuseMalformed(err)
		}
		return err
	}
	return c.accept(c.s.fail(inv, kind, report))
}

// initError takes the reason why a function cannot begin.
func (c *connection) initError(q *request) error {
	kind, report, err := c.report(q)
	if err != nil {
		if errors.Is(err, errMalformed) {
			return c.refuseMalformed(err)
		}
		return err
	}
	if !c.s.failInit(kind, report) {
		return c.refuse(403, "InvalidStateTransition", "the function is initialised")
	}
	return c.accept(true)
}

// report reads an error's type and what is reported of it.
func (c *connection) report(q *request) (kind string, report []byte, err error) {
	kind = string(q.errorType)
	body, err := c.readBody(maxErrorBytes)
	if errors.Is(err, errTooLong) {
		return typeTooLarge, tooLarge(maxErrorBytes), nil
	}
	if err != nil {
		return "", nil, err
	}
	if kind == "" {
		var said struct {
			ErrorType string `json:"errorType"`
		}
		// What is no JSON is passed on all the same.
		_ = json.Unmarshal(body, &said)
		if kind = said.ErrorType; kind == "" {
			kind = "Runtime.Unknown"
		}
	}
	return kind, bytes.Clone(body), nil
}

// ---- responses

func (c *connection) accept(inTime bool) error {
	if !inTime {
		return c.refuseID()
	}
	return c.respond(202, `{"status":"OK"}`)
}

func (c *connection) refuseID() error { return c.refuse(400, "InvalidRequestID", "Invalid request ID") }

func (c *connection) refuseMalformed(err error) error {
	c.closing = true
	return c.refuse(400, "InvalidRequest", err.Error())
}

func (c *connection) refuse(status int, kind, message string) error {
	return c.respond(status, string(errorJSON(kind, message)))
}

// respond writes a response. A client waiting for leave to send its body does
// without, and the connection ends.
func (c *connection) respond(status int, body string) error {
	if c.r.req.expecting {
		c.closing = true
	}
	b := append(c.out[:0], "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, statusText(status)...)
	b = append(b, "\r\nContent-Type: application/json\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(body)), 10)
	if c.closing {
		b = append(b, "\r\nConnection: close"...)
	}
	b = append(b, "\r\n\r\n"...)
	b = append(b, body...)
	c.out = b
	_, err := c.Write(b)
	return err
}

func statusText(status int) string {
	switch status {
	case 200:
		return "OK"
	case 202:
		return "Accepted"
	case 400:
		return "Bad Request"
	case 403:
		return "Forbidden"
	case 404:
		return "Not Found"
	case 413:
		return "Request Entity Too Large"
	}
	return "Error"
}

// errorJSON is an error as the Runtime API and functions' callers get it.
func errorJSON(kind, message string) []byte {
	b, err := json.Marshal(struct {
		ErrorType    string `json:"errorType"`
		ErrorMessage string `json:"errorMessage"`
	}{kind, message})
	if err != nil {
		return []byte(`{"errorType":"Runtime.Unknown","errorMessage":""}`)
	}
	return b
}

func tooLarge(limit int) []byte {
	return errorJSON(typeTooLarge, fmt.Sprintf("Response payload size exceeded maximum allowed payload size (%d bytes).", limit))
}

// appendAddresses adds headers that tell a restored function its addresses.
func appendAddresses(b []byte, n *frame.Network) []byte {
	for _, a := range []struct {
		header  string
		address netip.Addr
	}{{"Volley-Address", n.Address}, {"Volley-Address6", n.Address6}} {
		if a.address.IsValid() {
			b = append(append(b, "\r\n"+a.header+": "...), a.address.String()...)
		}
	}
	return b
}
