package double

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
)

// Main is the double's main function. It returns the exit status.
func Main(args []string) int {
	flags := flag.NewFlagSet("firecracker", flag.ContinueOnError)
	version := flags.Bool("version", false, "print the version")
	socket := flags.String("api-sock", "", "the socket of the API")
	logPath := flags.String("log-path", "", "the file of the log")
	level := flags.String("level", "Info", "what is logged")
	if err := flags.Parse(args); err != nil || flags.NArg() > 0 {
		return 153
	}
	if *version {
		fmt.Printf("Firecracker v%s\n\n", Version)
		return 0
	}
	if !slices.Contains([]string{"Error", "Warn", "Warning", "Info", "Debug", "Trace", "Off"}, *level) {
		fmt.Fprintln(os.Stderr, "unknown level", *level)
		return 153
	}
	v := &double{state: notStarted, config: config{CPUs: 1, MemoryMiB: 128}, log: io.Discard}
	v.resumed = sync.NewCond(&v.mu)
	if *logPath != "" {
		f, err := os.OpenFile(*logPath, os.O_RDWR|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		v.log = f
	}
	listener, err := net.Listen("unix", *socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Fprintln(os.Stderr, http.Serve(listener, v))
	return 1
}

// The states of a VM.
const (
	notStarted = "Not started"
	running    = "Running"
	paused     = "Paused"
)

// config is what has been configured, which a snapshot's state holds.
type config struct {
	CPUs        int
	MemoryMiB   int
	Kernel      string
	CommandLine string
	Drives      []configDrive
	Networks    []configNetwork
	Vsock       string
}

type configDrive struct {
	ID, Path string
	ReadOnly bool
}

type configNetwork struct{ ID, Tap string }

// double is a Firecracker.
type double struct {
	log io.Writer

	mu         sync.Mutex
	resumed    *sync.Cond
	state      string
	config     config
	configured bool // something, so that nothing can be loaded
	guest      guest
}

// fault is an error that is answered.
type fault string

func (f fault) Error() string { return string(f) }

// ServeHTTP implements http.Handler.
func (v *double) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var answer any
	if err == nil {
		answer, err = v.serve(r.Method, r.URL.Path, body)
	}
	status := http.StatusOK
	switch {
	case err != nil:
		fmt.Fprintf(v.log, "%s %s: %v\n", r.Method, r.URL.Path, err)
		status = http.StatusBadRequest
		answer = map[string]string{"fault_message": err.Error()}
	case answer == nil:
		w.WriteHeader(http.StatusNoContent)
		return
	}
	text, encodeErr := json.Marshal(answer)
	if encodeErr != nil {
		panic(encodeErr) // of strings and numbers
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	if _, err := w.Write(text); err != nil {
		return // the client is gone
	}
	var broken brokenLoad
	if errors.As(err, &broken) {
		_ = http.NewResponseController(w).Flush() // the client may be gone
		fmt.Fprintln(os.Stderr, "snapshot load failed")
		os.Exit(1)
	}
}

// decode reads a body that has to have these fields, and may have those of v.
func decode(body []byte, v any, required ...string) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return fault("cannot parse the body: " + err.Error())
	}
	for _, name := range required {
		if _, ok := fields[name]; !ok {
			return fault("missing field `" + name + "`")
		}
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fault("cannot parse the body: " + err.Error())
	}
	return nil
}
