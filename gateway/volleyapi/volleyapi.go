// Package volleyapi serves what people want to know of the platform and the
// Lambda API has no words for: containers, invokers, statistics, logs, and what
// became of asynchronous invocations. It is JSON over HTTP below /volley/v1/,
// with the same signatures as the Lambda API. docs/api.md describes it.
package volleyapi

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/gateway/awshttp"
	"github.com/volley-run/volley/gateway/httpserver"
	"github.com/volley-run/volley/internal/sigv4"
	"github.com/volley-run/volley/sophon/controller"
)

// Prefix is what the paths of the API begin with.
const Prefix = "/volley/v1/"

const (
	// maxBodyBytes bounds request bodies, which no request needs.
	maxBodyBytes = 64 << 10
	// defaultLimit and maxLimit are how long a page is.
	defaultLimit = 100
	maxLimit     = 1000
	// lineTimeout is how long a reader of logs may take for a line.
	lineTimeout = 30 * time.Second
)

// Platform is what is asked: a controller.Controller. Its methods may be
// called concurrently; their errors are *function.Error where somebody else
// than the platform is at fault.
type Platform interface {
	Leader() (id, advertise string, self bool)
	Containers(ctx context.Context) ([]controller.Container, error)
	Nodes(ctx context.Context) ([]controller.Node, error)
	Functions(ctx context.Context) ([]controller.FunctionStats, error)
	Logs(ctx context.Context, name string, since time.Time, follow bool, handle func(function.LogLine) error) error
	Record(ctx context.Context, requestID string) (controller.Record, error)
	Records(ctx context.Context, marker string, limit int) (records []controller.Record, next string, err error)
	DeadLetters(ctx context.Context, marker string, limit int) (letters []controller.DeadLetter, next string, err error)
	DeleteDeadLetter(ctx context.Context, requestID string) error
}

// Config is what a Handler needs.
type Config struct {
	Platform Platform
	// Verifier checks signatures; it is for the service awshttp.SigningService.
	Verifier *sigv4.Verifier
	// Uploads takes uploads; nil refuses them.
	Uploads *Uploads
	// Log takes the platform's faults; nil is slog.Default().
	Log *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Handler serves the API. It may be used concurrently.
type Handler struct {
	platform Platform
	verifier *sigv4.Verifier
	uploads  *Uploads
	log      *slog.Logger
	now      func() time.Time
	mux      *http.ServeMux
}

// New returns a Handler. There is nothing to close.
func New(c Config) *Handler {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	h := &Handler{platform: c.Platform, verifier: c.Verifier, uploads: c.Uploads, log: c.Log, now: c.Now, mux: http.NewServeMux()}
	for pattern, serve := range map[string]func(http.ResponseWriter, *http.Request) error{
		"GET " + Prefix + "leader":              h.leader,
		"GET " + Prefix + "containers":          h.containers,
		"GET " + Prefix + "nodes":               h.nodes,
		"GET " + Prefix + "functions":           h.functions,
		"GET " + Prefix + "logs":                h.logs,
		"GET " + Prefix + "records":             h.records,
		"GET " + Prefix + "records/{id}":        h.record,
		"GET " + Prefix + "deadletters":         h.deadLetters,
		"DELETE " + Prefix + "deadletters/{id}": h.deleteDeadLetter,
		"/":                                     unknown,
	} {
		h.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := serve(w, r); err != nil {
				awshttp.WriteError(w, r, h.log, err)
			}
		})
	}
	return h
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	awshttp.Begin(w)
	if h.uploads != nil && r.Method == http.MethodPost && r.URL.Path == Prefix+"uploads" {
		if err := h.uploads.serve(w, r, h.verifier); err != nil {
			awshttp.WriteError(w, r, h.log, err)
		}
		return
	}
	if _, _, err := awshttp.ReadSigned(w, r, h.verifier, maxBodyBytes); err != nil {
		awshttp.WriteError(w, r, h.log, err)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	h.mux.ServeHTTP(w, r)
}

func unknown(_ http.ResponseWriter, r *http.Request) error {
	return awshttp.NewError(awshttp.UnknownOperation, "there is no operation "+r.Method+" "+strconv.Quote(r.URL.Path)+"; docs/api.md lists them")
}

func (h *Handler) leader(w http.ResponseWriter, _ *http.Request) error {
	id, advertise, self := h.platform.Leader()
	return awshttp.WriteJSON(w, http.StatusOK, struct {
		ID        string `json:"id"`
		Advertise string `json:"advertise"`
		Self      bool   `json:"self"`
	}{id, advertise, self})
}

func (h *Handler) containers(w http.ResponseWriter, r *http.Request) error {
	list, err := h.platform.Containers(r.Context())
	if err != nil {
		return err
	}
	name := r.FormValue("function")
	out := make([]controller.Container, 0, len(list))
	for _, c := range list {
		if name == "" || c.Function == name {
			out = append(out, c)
		}
	}
	return awshttp.WriteJSON(w, http.StatusOK, struct {
		Containers []controller.Container `json:"containers"`
	}{out})
}

func (h *Handler) nodes(w http.ResponseWriter, r *http.Request) error {
	list, err := h.platform.Nodes(r.Context())
	if err != nil {
		return err
	}
	return awshttp.WriteJSON(w, http.StatusOK, struct {
		Nodes []controller.Node `json:"nodes"`
	}{present(list)})
}

func (h *Handler) functions(w http.ResponseWriter, r *http.Request) error {
	list, err := h.platform.Functions(r.Context())
	if err != nil {
		return err
	}
	return awshttp.WriteJSON(w, http.StatusOK, struct {
		Functions []controller.FunctionStats `json:"functions"`
	}{present(list)})
}

// present makes JSON show an empty list, not null.
func present[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func (h *Handler) record(w http.ResponseWriter, r *http.Request) error {
	record, err := h.platform.Record(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return awshttp.WriteJSON(w, http.StatusOK, record)
}

func (h *Handler) records(w http.ResponseWriter, r *http.Request) error {
	limit, err := pageLimit(r)
	if err != nil {
		return err
	}
	list, next, err := h.platform.Records(r.Context(), r.FormValue("marker"), limit)
	if err != nil {
		return err
	}
	return awshttp.WriteJSON(w, http.StatusOK, struct {
		Records []controller.Record `json:"records"`
		Next    string              `json:"next,omitempty"`
	}{present(list), next})
}

func (h *Handler) deadLetters(w http.ResponseWriter, r *http.Request) error {
	limit, err := pageLimit(r)
	if err != nil {
		return err
	}
	list, next, err := h.platform.DeadLetters(r.Context(), r.FormValue("marker"), limit)
	if err != nil {
		return err
	}
	return awshttp.WriteJSON(w, http.StatusOK, struct {
		DeadLetters []controller.DeadLetter `json:"deadLetters"`
		Next        string                  `json:"next,omitempty"`
	}{present(list), next})
}

func (h *Handler) deleteDeadLetter(w http.ResponseWriter, r *http.Request) error {
	if err := h.platform.DeleteDeadLetter(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func pageLimit(r *http.Request) (int, error) {
	given := r.FormValue("limit")
	if given == "" {
		return defaultLimit, nil
	}
	n, err := strconv.Atoi(given)
	if err != nil || n < 1 || n > maxLimit {
		return 0, invalid("limit", "use 1 to "+strconv.Itoa(maxLimit))
	}
	return n, nil
}

// logs sends log lines, a JSON object on each line, oldest first.
func (h *Handler) logs(w http.ResponseWriter, r *http.Request) error {
	since, err := h.since(r.FormValue("since"))
	if err != nil {
		return err
	}
	follow := false
	if given := r.FormValue("follow"); given != "" {
		if follow, err = strconv.ParseBool(given); err != nil {
			return invalid("follow", "use true or false")
		}
	}
	name := r.FormValue("function")
	if name != "" && !function.ValidName(name) {
		return invalid("function", "it is no function's name")
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	out := &lines{w: w, control: http.NewResponseController(w), flush: follow}
	if follow {
		defer context.AfterFunc(httpserver.Closing(ctx), cancel)()
		if err := out.begin(); err != nil {
			return nil // the client has gone
		}
	}
	err = h.platform.Logs(ctx, name, since, follow, out.write)
	switch {
	case err == nil || ctx.Err() != nil:
		return out.begin()
	case out.begun:
		h.log.Warn("log stream broke off", "function", name, "error", err)
		panic(http.ErrAbortHandler) // the client must not take what it has for the whole
	}
	return err
}

// since understands a time, and how long ago.
func (h *Handler) since(given string) (time.Time, error) {
	if given == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(given); err == nil && ago >= 0 {
		return h.now().Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, given)
	if err != nil {
		return time.Time{}, invalid("since", "use a time such as 2026-01-02T15:04:05Z, or how long ago, such as 10m")
	}
	return at, nil
}

// lines writes log lines.
type lines struct {
	w       http.ResponseWriter
	control *http.ResponseController
	flush   bool // after each line
	begun   bool
}

// begin sends the response's header, once.
func (l *lines) begin() error {
	if l.begun {
		return nil
	}
	l.begun = true
	l.w.Header().Set("Content-Type", "application/x-ndjson")
	l.w.WriteHeader(http.StatusOK)
	return l.control.Flush()
}

func (l *lines) write(line function.LogLine) error {
	if err := l.begin(); err != nil {
		return err
	}
	text, err := json.Marshal(line)
	if err != nil {
		return err
	}
	// A server that sets no deadlines need not be able to.
	_ = l.control.SetWriteDeadline(time.Now().Add(lineTimeout))
	if _, err := l.w.Write(append(text, '\n')); err != nil {
		return err
	}
	if l.flush {
		return l.control.Flush()
	}
	return nil
}

func invalid(field, message string) error {
	return awshttp.NewError(awshttp.InvalidParameterValue, field+": "+message)
}
