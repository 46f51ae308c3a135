package agent

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/volley-run/volley/sandbox/agent/frame"
)

// The types of errors that the platform reports for a function, as AWS Lambda
// names them.
const (
	typeExit             = "Runtime.ExitError"
	typeTimeout          = "Sandbox.Timedout"
	typeOutOfMemory      = "Runtime.OutOfMemory"
	typeInvalidEntry     = "Runtime.InvalidEntrypoint"
	typeResponseTooLarge = "Function.ResponseSizeTooLarge"
)

// functionError is an error that function code is to blame for: Type with
// either the payload that the function gave, or Message.
type functionError struct {
	Type    string `json:"errorType"`
	Message string `json:"errorMessage"`
	payload []byte
	// platform says that the function did not report it itself.
	platform bool
}

// json returns the error as the caller of the function gets it.
func (e *functionError) json() []byte {
	if len(e.payload) > 0 {
		return e.payload
	}
	b, err := json.Marshal(e)
	if err != nil {
		return []byte(`{"errorType":"Runtime.Unknown","errorMessage":""}`)
	}
	return b
}

// message returns what is wrong in words.
func (e *functionError) message() string {
	if e.Message != "" || len(e.payload) == 0 {
		return e.Message
	}
	var reported functionError
	if err := json.Unmarshal(e.payload, &reported); err != nil {
		return string(e.payload)
	}
	return reported.Message
}

// exitError is the error for a function that ended; id is empty during the
// initialisation, and limit is the time that it had.
func exitError(e frame.Exit, id string, limit time.Duration) functionError {
	of := "RequestId: " + id + " "
	if id == "" {
		of = ""
	}
	switch e.Reason {
	case frame.ReasonDeadline, frame.ReasonInitTimeout:
		what := "Task"
		if e.Reason == frame.ReasonInitTimeout {
			what = "Initialization"
		}
		return functionError{Type: typeTimeout, platform: true,
			Message: fmt.Sprintf("%sError: %s timed out after %.2f seconds", of, what, limit.Seconds())}
	case frame.ReasonStart:
		return functionError{Type: typeInvalidEntry, platform: true, Message: of + "Error: " + e.Detail}
	}
	how := "Runtime exited without providing a reason"
	switch {
	case e.Signal != "":
		how = "Runtime exited with error: signal: " + e.Signal
	case e.Status != 0:
		how = fmt.Sprintf("Runtime exited with error: exit status %d", e.Status)
	}
	kind := typeExit
	if e.Killed {
		kind = typeOutOfMemory
	}
	return functionError{Type: kind, platform: true, Message: of + "Error: " + how}
}

// tooLarge is the error for an answer that is over frame.MaxResponse.
func tooLarge() *functionError {
	return &functionError{Type: typeResponseTooLarge,
		Message: fmt.Sprintf("Response payload size exceeded maximum allowed payload size (%d bytes).", frame.MaxResponse)}
}
