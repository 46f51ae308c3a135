package lambda

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws/protocol/eventstream"
	"github.com/aws/aws-sdk-go-v2/aws/protocol/eventstream/eventstreamapi"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/gateway/awshttp"
)

// maxChunkBytes is how much one event of a stream holds; AWS's decoders take
// 16 MiB.
const maxChunkBytes = 1 << 20

// invokeStream runs a function and sends its answer in pieces, as they come.
func (h *Handler) invokeStream(c *call) error {
	inv, err := h.invocation(c)
	if err != nil {
		return err
	}
	switch inv.Type {
	case function.DryRun:
		return h.dryRun(c)
	case function.Event:
		return awshttp.NewError(awshttp.InvalidParameterValue,
			"InvocationType: a streamed invocation cannot be of type Event: use RequestResponse or DryRun")
	}
	out := &eventWriter{w: c.w, control: http.NewResponseController(c.w), encoder: eventstream.NewEncoder()}
	result, err := h.platform.InvokeStream(c.ctx(), inv, out.start, out.piece)
	if err != nil && !out.started {
		return err
	}
	if c.ctx().Err() != nil {
		panic(http.ErrAbortHandler) // nobody reads the rest
	}
	var end complete
	switch {
	case err != nil:
		e, known := awshttp.AsError(err)
		if !known {
			h.log.Error("stream broke off", "function", c.name, "request", c.id, "error", err)
		}
		end.ErrorCode, end.ErrorDetails = e.Name, e.Message
	case result.FunctionError != "":
		end.ErrorCode, end.ErrorDetails = result.FunctionError, string(result.Payload)
	case len(result.Payload) > 0: // a function that does not stream
		if err := out.piece(result.Payload); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	if inv.LogTail {
		end.LogResult = base64.StdEncoding.EncodeToString(result.LogTail)
	}
	if out.end(end) != nil {
		panic(http.ErrAbortHandler) // the client must not take what it has for the whole
	}
	return nil
}

// complete is the last event of a stream.
type complete struct {
	ErrorCode    string `json:",omitempty"`
	ErrorDetails string `json:",omitempty"`
	LogResult    string `json:",omitempty"`
}

// eventWriter writes a response in AWS's event stream encoding.
type eventWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	encoder *eventstream.Encoder
	started bool
}

// start sends the response's header. The content type of the stream is of the
// encoding; that of what is in it goes into a header of its own.
func (e *eventWriter) start(contentType string) {
	if e.started {
		return
	}
	e.started = true
	header := e.w.Header()
	header.Set("Content-Type", "application/vnd.amazon.eventstream")
	header["X-Amz-Executed-Version"] = latest
	if contentType != "" {
		header.Set("X-Volley-Content-Type", contentType)
	}
	e.w.WriteHeader(http.StatusOK)
	_ = e.control.Flush() // the next write tells if the client has gone
}

// piece sends a piece of the answer at once.
func (e *eventWriter) piece(piece []byte) error {
	e.start("")
	for len(piece) > 0 {
		n := min(len(piece), maxChunkBytes)
		if err := e.event("PayloadChunk", "application/octet-stream", piece[:n]); err != nil {
			return err
		}
		piece = piece[n:]
	}
	return nil
}

func (e *eventWriter) end(c complete) error {
	e.start("")
	text, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode end of stream: %w", err)
	}
	return e.event("InvokeComplete", "application/json", text)
}

func (e *eventWriter) event(kind, contentType string, payload []byte) error {
	err := e.encoder.Encode(e.w, eventstream.Message{
		Headers: eventstream.Headers{
			{Name: eventstreamapi.EventTypeHeader, Value: eventstream.StringValue(kind)},
			{Name: eventstreamapi.ContentTypeHeader, Value: eventstream.StringValue(contentType)},
			{Name: eventstreamapi.MessageTypeHeader, Value: eventstream.StringValue(eventstreamapi.EventMessageType)},
		},
		Payload: payload,
	})
	if err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	if err := e.control.Flush(); err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	return nil
}
