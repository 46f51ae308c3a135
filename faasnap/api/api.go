// Package api serves FaaSnap over HTTP: functions, virtual machines, their
// invocations, and snapshots with what was recorded of them. docs/faasnap.md
// shows it by example; /v1/openapi.json describes it.
//
// There is no authentication: whoever reaches the API can run code and read
// what functions had in memory. It belongs on a unix socket that is its owner's
// only.
package api

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"sync"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/sandbox"
)

// Limits of request bodies.
const (
	// MaxEventBytes bounds an invocation's event, as AWS Lambda does.
	MaxEventBytes = 6 << 20
	// MaxRequestBytes bounds all other bodies: a request to record has several
	// events in it.
	MaxRequestBytes = 32 << 20
)

// Config is what a Server has to know.
type Config struct {
	// Service is what it serves.
	Service *faasnap.Service
	// Images is a directory in which container images are unpacked; it is made
	// if need be. Empty refuses them.
	Images string
	// Mode is how snapshots are restored unless a request says otherwise; empty
	// is faasnap.FaaSnap.
	Mode faasnap.Mode
	// Networks gives machines their places on networks of jobs, which have to have
	// taps; nil refuses them.
	Networks sandbox.Networks
	// Log takes what no client is told. May be nil.
	Log *slog.Logger
}

// Server is the API's handler.
type Server struct {
	cfg Config
	mux *http.ServeMux
	// building is held while images are unpacked.
	building sync.Mutex

	mu sync.Mutex
	// machines are those that were started here, by id.
	machines map[string]*machine
	closed   bool
	watchers sync.WaitGroup
}

// machine is what the API knows of a machine beyond what the Service does.
type machine struct {
	vm *faasnap.VM
	// network is its network device; nil is none.
	network *attachment
	// mu is held by whoever invokes, pauses or saves it.
	mu     sync.Mutex
	paused bool // guarded by Server.mu
	busy   bool // guarded by Server.mu
}

// New returns a handler. The caller closes it before the Service.
func New(cfg Config) *Server {
	if cfg.Mode == "" {
		cfg.Mode = faasnap.FaaSnap
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, mux: http.NewServeMux(), machines: make(map[string]*machine)}
	s.register()
	return s
}

// Close ends the machines that were started over the API. It is idempotent.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	var vms []*faasnap.VM
	for _, m := range s.machines {
		vms = append(vms, m.vm)
	}
	s.mu.Unlock()
	var errs []error
	for _, vm := range vms {
		errs = append(errs, vm.Close())
	}
	s.watchers.Wait()
	return errors.Join(errs...)
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// register tells the mux of the routes.
func (s *Server) register() {
	methods := map[string]string{}
	for _, rt := range routes() {
		s.mux.HandleFunc(rt.method+" "+rt.path, func(w http.ResponseWriter, r *http.Request) {
			limit := int64(MaxRequestBytes)
			if rt.event {
				limit = MaxEventBytes
			}
			r.Body = http.MaxBytesReader(w, r.Body, limit)
			if err := rt.handle(s, w, r); err != nil {
				s.fail(w, r, err)
			}
		})
		if methods[rt.path] != "" {
			methods[rt.path] += ", "
		}
		methods[rt.path] += rt.method
	}
	for path, allowed := range methods {
		s.mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Allow", allowed)
			s.fail(w, r, &statusError{http.StatusMethodNotAllowed, CodeMethod, errors.New("the path takes " + allowed)})
		})
	}
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, &statusError{http.StatusNotFound, CodeNotFound, errors.New("there is no such path: see /v1/openapi.json")})
	})
}

// fail answers with an error.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	code, answer := s.describe(r, err)
	s.write(w, code, answer)
}

// describe returns what a client is told of an error.
func (s *Server) describe(r *http.Request, err error) (int, Error) {
	code, name := status(r.Context(), err)
	if code == http.StatusInternalServerError {
		s.cfg.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	return code, Error{Code: name, Message: err.Error()}
}

// write answers with JSON.
func (s *Server) write(w http.ResponseWriter, code int, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		s.cfg.Log.Error("encode answer", "err", err)
		code, text = http.StatusInternalServerError, []byte(`{"code":"failed","message":"the answer cannot be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(text, '\n')) // the client may have gone
}

// answer answers with JSON and success.
func (s *Server) answer(w http.ResponseWriter, v any) error {
	s.write(w, http.StatusOK, v)
	return nil
}

// decode reads a request's body, which has known members only. An empty body is
// an empty object.
func decode(r *http.Request, into any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		if _, err = d.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		err = errors.New("there is more after the first value")
	}
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge
	}
	return invalid(errors.Join(errors.New("the body is not as the OpenAPI document has it"), err))
}

// eventStream is the media type of answers in pieces.
const eventStream = "application/x-ndjson"

// long runs something that takes long. A client that accepts eventStream is told
// of each step, and of the result at the end.
func (s *Server) long(w http.ResponseWriter, r *http.Request, do func(step func(string)) (Event, error)) error {
	if r.Header.Get("Accept") != eventStream {
		e, err := do(func(string) {})
		if err != nil {
			return err
		}
		if e.Function != nil {
			return s.answer(w, e.Function)
		}
		if e.Learned != nil {
			return s.answer(w, e.Learned)
		}
		s.write(w, http.StatusCreated, e.Snapshot)
		return nil
	}
	w.Header().Set("Content-Type", eventStream)
	enc := json.NewEncoder(w)
	send := func(e Event) {
		_ = enc.Encode(e) // the client may have gone, which ends the request
		_ = http.NewResponseController(w).Flush()
	}
	send(Event{Step: "start"})
	e, err := do(func(step string) { send(Event{Step: step}) })
	if err != nil {
		_, answer := s.describe(r, err)
		e = Event{Error: &answer}
	}
	send(e)
	return nil
}

// initPayload returns what a function that cannot be initialised tells its
// caller.
func initPayload(err error) ([]byte, bool) {
	e, ok := errors.AsType[*sandbox.InitError](err)
	if !ok {
		return nil, false
	}
	return e.Payload, true
}
