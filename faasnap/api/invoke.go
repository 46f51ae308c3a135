package api

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/mem"
	"github.com/volley-run/volley/faasnap/pages"
	"github.com/volley-run/volley/sandbox"
)

// Headers of the answer to an invocation. Its times are in Server-Timing.
const (
	// HeaderRequestID tells invocations apart.
	HeaderRequestID = "Volley-Request-Id"
	// HeaderFunctionError is there if the function failed, and the body is its
	// error: "Unhandled", as AWS Lambda has it in X-Amz-Function-Error.
	HeaderFunctionError = "Volley-Function-Error"
	// HeaderLogResult is the end of the function's log in base64, if the request
	// asked for it by log=tail.
	HeaderLogResult = "Volley-Log-Result"
	// HeaderMode is how the machine came about.
	HeaderMode = "Volley-Mode"
	// HeaderMajorFaults and HeaderMinorFaults are the page faults of the
	// machine's process since its start, HeaderResidentBytes its memory in use.
	HeaderMajorFaults   = "Volley-Major-Faults"
	HeaderMinorFaults   = "Volley-Minor-Faults"
	HeaderResidentBytes = "Volley-Resident-Bytes"
	// HeaderFetchedBytes is how many bytes came from an object store for the
	// machine since its start.
	HeaderFetchedBytes = "Volley-Fetched-Bytes"
)

// readEvent reads an invocation's event, which is JSON; none is an empty object.
func readEvent(r *http.Request) ([]byte, error) {
	event, err := io.ReadAll(r.Body)
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return nil, fmt.Errorf("the event is too large: %w", err)
	}
	if err != nil {
		return nil, invalid(fmt.Errorf("read the event: %w", err))
	}
	if len(event) == 0 {
		return []byte("{}"), nil
	}
	if !json.Valid(event) {
		return nil, invalid(errors.New("the event is not JSON"))
	}
	return event, nil
}

func wantsLog(q url.Values) (bool, error) {
	switch v := q.Get("log"); v {
	case "":
		return false, nil
	case "tail":
		return true, nil
	default:
		return false, invalid(fmt.Errorf("log=%s: only tail is known", v))
	}
}

func boolean(q url.Values, name string) (bool, error) {
	if !q.Has(name) {
		return false, nil
	}
	on, err := strconv.ParseBool(q.Get(name))
	if err != nil {
		return false, invalid(fmt.Errorf("%s=%s: use true or false", name, q.Get(name)))
	}
	return on, nil
}

// invokeVM runs an invocation in a machine.
func (s *Server) invokeVM(w http.ResponseWriter, r *http.Request) error {
	event, err := readEvent(r)
	if err != nil {
		return err
	}
	tail, err := wantsLog(r.URL.Query())
	if err != nil {
		return err
	}
	m, release, err := s.running(r.PathValue("id"))
	if err != nil {
		return err
	}
	defer release()
	return s.invoke(w, r, m.vm, event, tail, 0)
}

// invokeFunction starts a machine, runs an invocation, and ends the machine.
func (s *Server) invokeFunction(w http.ResponseWriter, r *http.Request) (err error) {
	event, err := readEvent(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	tail, err := wantsLog(q)
	if err != nil {
		return err
	}
	f, err := s.cfg.Service.Function(r.PathValue("name"))
	if err != nil {
		return err
	}
	req := StartRequest{Snapshot: q.Get("snapshot"), Mode: q.Get("mode")}
	var hugeErr, populateErr error
	req.HugeZeros, hugeErr = boolean(q, "hugeZeros")
	req.Populate, populateErr = boolean(q, "populate")
	if err := errors.Join(hugeErr, populateErr); err != nil {
		return err
	}
	if req.Mode == string(faasnap.Boot) {
		req = StartRequest{Function: f.Name}
	} else if req.Snapshot == "" {
		req.Snapshot = f.Name
		// Without a mode, a function that has no snapshot is booted.
		if _, err := s.cfg.Service.Inspect(f.Name); req.Mode == "" && errors.Is(err, faasnap.ErrNotFound) {
			req = StartRequest{Function: f.Name}
		}
	}
	if req.Snapshot != "" {
		snap, err := s.cfg.Service.Inspect(req.Snapshot)
		if err != nil {
			return err
		}
		if of := faasnap.FunctionOf(snap); of != f.Name {
			return invalid(fmt.Errorf("snapshot %s is of function %s, not of %s", req.Snapshot, of, f.Name))
		}
	}
	begin := time.Now()
	var network *Network
	if n := (Network{Tap: q.Get("tap"), Namespace: q.Get("namespace"), Job: q.Get("job")}); n != (Network{}) {
		network = &n
	}
	n, err := s.attach(r.Context(), network)
	if err != nil {
		return err
	}
	defer n.leave()
	vm, err := s.start(r.Context(), req, n)
	if payload, ok := initPayload(err); ok {
		w.Header().Set(HeaderFunctionError, "Unhandled")
		w.Header().Set(HeaderMode, string(faasnap.Boot))
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(payload)
		return nil
	}
	if err != nil {
		return err
	}
	defer func() {
		if err := vm.Close(); err != nil {
			s.cfg.Log.Warn("close machine", "id", vm.ID(), "err", err)
		}
	}()
	return s.invoke(w, r, vm, event, tail, time.Since(begin))
}

// invoke runs an invocation and answers with what the function does. start is
// how long the machine took to start for it.
func (s *Server) invoke(w http.ResponseWriter, r *http.Request, vm *faasnap.VM, event []byte, tail bool, start time.Duration) error {
	req := sandbox.Request{ID: uuid.NewString(), Payload: event, LogTail: tail, Deadline: time.Now().Add(vm.Function().Timeout)}
	begin := time.Now()
	resp, err := vm.Invoke(r.Context(), req)
	if err != nil {
		return errors.Join(err, vm.Close())
	}
	took := time.Since(begin)
	host := hostFigures(vm.Info().PID)
	if resp.Broken {
		if err := vm.Close(); err != nil {
			s.cfg.Log.Warn("close machine", "id", vm.ID(), "err", err)
		}
	}
	h := w.Header()
	h.Set(HeaderRequestID, req.ID)
	h.Set(HeaderMode, string(vm.Info().Mode))
	h.Set("Server-Timing", fmt.Sprintf("start;dur=%.3f, run;dur=%.3f, total;dur=%.3f", milliseconds(start), milliseconds(resp.Run), milliseconds(start+took)))
	h.Set(HeaderMajorFaults, strconv.FormatInt(host.MajorFaults, 10))
	h.Set(HeaderMinorFaults, strconv.FormatInt(host.MinorFaults, 10))
	h.Set(HeaderResidentBytes, strconv.FormatInt(host.ResidentBytes, 10))
	h.Set(HeaderFetchedBytes, strconv.FormatInt(vm.LoadStats().FetchedBytes, 10))
	if resp.FunctionError != "" {
		h.Set(HeaderFunctionError, resp.FunctionError)
	}
	if tail {
		h.Set(HeaderLogResult, base64.StdEncoding.EncodeToString(resp.LogTail))
	}
	h.Set("Content-Type", "application/json")
	_, _ = w.Write(resp.Payload) // the client may have gone
	return nil
}

// hostFigures tells what a process has cost the host; of one that has ended,
// nothing.
func hostFigures(pid int) HostFigures {
	h := HostFigures{PID: pid}
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return h
	}
	// Fields are counted from behind the name, which may have blanks in it.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) > 9 {
		h.MinorFaults, _ = strconv.ParseInt(fields[7], 10, 64)
		h.MajorFaults, _ = strconv.ParseInt(fields[9], 10, 64)
	}
	if n, err := mem.RSS(pid); err == nil {
		h.ResidentBytes = int64(n) * pages.Size
	}
	return h
}
