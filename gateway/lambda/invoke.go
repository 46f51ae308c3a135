package lambda

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/gateway/awshttp"
)

// maxClientContextBytes is how long the client context may be in base64.
const maxClientContextBytes = 3583

// latest is the value of the header X-Amz-Executed-Version. It is constant.
var latest = []string{function.LatestVersion}

// jsonType is the value of the header Content-Type. It is constant.
var jsonType = []string{"application/json"}

// invoke runs a function. It is the hot path: it reads the body once, and
// neither encodes nor decodes JSON.
func (h *Handler) invoke(c *call) error {
	inv, err := h.invocation(c)
	if err != nil {
		return err
	}
	switch inv.Type {
	case function.DryRun:
		return h.dryRun(c)
	case function.Event:
		if err := h.enqueue(c, inv); err != nil {
			return err
		}
		c.w.WriteHeader(http.StatusAccepted)
		return nil
	}
	result, err := h.platform.Invoke(c.ctx(), inv)
	if err != nil {
		return err
	}
	header := c.w.Header()
	header["Content-Type"] = jsonType
	header["Content-Length"] = []string{strconv.Itoa(len(result.Payload))}
	header["X-Amz-Executed-Version"] = latest
	if result.FunctionError != "" {
		header["X-Amz-Function-Error"] = []string{result.FunctionError}
	}
	if inv.LogTail {
		header["X-Amz-Log-Result"] = []string{base64.StdEncoding.EncodeToString(result.LogTail)}
	}
	header["Server-Timing"] = []string{serverTiming(&result)}
	c.w.WriteHeader(http.StatusOK)
	_, _ = c.w.Write(result.Payload) // a client that has gone does not need to be told
	return nil
}

// invokeAsync is Invoke with the type Event as it was before there were types.
func (h *Handler) invokeAsync(c *call) error {
	inv, err := h.invocation(c)
	if err != nil {
		return err
	}
	inv.Type = function.Event
	if err := h.enqueue(c, inv); err != nil {
		return err
	}
	return c.json(http.StatusAccepted, struct{ Status int }{http.StatusAccepted})
}

func (h *Handler) dryRun(c *call) error {
	if _, err := h.platform.GetFunction(c.ctx(), c.name); err != nil {
		return err
	}
	return c.empty()
}

func (h *Handler) enqueue(c *call, inv function.Invocation) error {
	if len(inv.Payload) > function.MaxAsyncPayloadBytes {
		return awshttp.NewError(awshttp.RequestTooLarge, strconv.Itoa(len(inv.Payload))+
			" byte payload is too large for the Event invocation type (limit "+strconv.Itoa(function.MaxAsyncPayloadBytes)+" bytes)")
	}
	return h.platform.InvokeAsync(c.ctx(), inv)
}

// invocation makes what a request asks for.
func (h *Handler) invocation(c *call) (function.Invocation, error) {
	header := c.r.Header
	inv := function.Invocation{
		ID: c.id, Function: c.name, Type: function.RequestResponse, Payload: c.body,
		LogTail: header.Get("X-Amz-Log-Type") == "Tail", Received: h.now(), Attempt: 1,
		TraceParent: traceParent(header.Get("Traceparent"), header.Get("X-Amzn-Trace-Id")),
	}
	switch kind := function.Type(header.Get("X-Amz-Invocation-Type")); kind {
	case "":
	case function.RequestResponse, function.Event, function.DryRun:
		inv.Type = kind
	default:
		return inv, awshttp.NewError(awshttp.InvalidParameterValue,
			"InvocationType: "+quote(string(kind))+" is unknown: use RequestResponse, Event or DryRun")
	}
	if kind := header.Get("X-Amz-Log-Type"); kind != "" && kind != "Tail" && kind != "None" {
		return inv, awshttp.NewError(awshttp.InvalidParameterValue, "LogType: "+quote(kind)+" is unknown: use Tail or None")
	}
	if len(inv.Payload) == 0 {
		inv.Payload = []byte("{}")
	} else if !json.Valid(inv.Payload) {
		return inv, awshttp.NewError(awshttp.InvalidRequestContent, "Could not parse request body into json: the payload is not JSON")
	}
	if encoded := header.Get("X-Amz-Client-Context"); encoded != "" {
		var err error
		if inv.ClientContext, err = clientContext(encoded); err != nil {
			return inv, err
		}
	}
	return inv, nil
}

func clientContext(encoded string) ([]byte, error) {
	if len(encoded) > maxClientContextBytes {
		return nil, awshttp.NewError(awshttp.InvalidRequestContent,
			"Client context must be "+strconv.Itoa(maxClientContextBytes)+" bytes or less.")
	}
	text, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || !json.Valid(text) {
		return nil, awshttp.NewError(awshttp.InvalidRequestContent, "Client context must be a valid Base64-encoded JSON object.")
	}
	return text, nil
}

// serverTiming tells, in the form of the HTTP header Server-Timing, where an
// invocation's time went, in milliseconds, and on what it ran.
func serverTiming(r *function.Result) string {
	b := make([]byte, 0, 160)
	b = appendTiming(b, "queue", r.Queued)
	b = append(b, ", "...)
	b = appendTiming(b, "start", r.Start)
	b = append(b, ", "...)
	b = appendTiming(b, "run", r.Run)
	if r.Cold {
		b = append(b, ", cold"...)
	}
	if r.Container != "" {
		b = append(b, `, container;desc="`...)
		b = append(b, r.Container...)
		b = append(b, '"')
	}
	return string(b)
}

func appendTiming(b []byte, name string, d time.Duration) []byte {
	b = append(b, name...)
	b = append(b, ";dur="...)
	return strconv.AppendFloat(b, float64(d)/float64(time.Millisecond), 'f', 3, 64)
}

// traceParent returns the W3C trace context of a request: as it was sent, or
// made of AWS's header "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1".
func traceParent(w3c, aws string) string {
	if w3c != "" || aws == "" {
		return w3c
	}
	var trace, parent string
	flags := "00"
	for field := range strings.SplitSeq(aws, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		switch name {
		case "Root":
			trace = strings.ReplaceAll(strings.TrimPrefix(value, "1-"), "-", "")
		case "Parent":
			parent = value
		case "Sampled":
			if value == "1" {
				flags = "01"
			}
		}
	}
	if !isHex(trace, 32) || !isHex(parent, 16) {
		return ""
	}
	return "00-" + trace + "-" + parent + "-" + flags
}

func isHex(s string, size int) bool {
	return len(s) == size && strings.Trim(s, "0123456789abcdef") == ""
}
