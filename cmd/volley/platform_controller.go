package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/gateway/awshttp"
	"github.com/volley-run/volley/gateway/httpserver"
	"github.com/volley-run/volley/gateway/lambda"
	"github.com/volley-run/volley/gateway/volleyapi"
	"github.com/volley-run/volley/internal/sigv4"
	"github.com/volley-run/volley/sandbox/image"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/controller"
	"github.com/volley-run/volley/sophon/invoker"
	"github.com/volley-run/volley/sophon/policy"
	"github.com/volley-run/volley/store"
)

// controllerOptions are the flags of a controller and its API.
type controllerOptions struct {
	listen      string
	advertise   string
	certFile    string
	keyFile     string
	credentials string
	policy      string
	sample      int
	eviction    string
	queueWait   time.Duration
	concurrency int
	offline     time.Duration
	hostNetwork bool
	s3          string
	// alone says that there is no other controller: it takes its own lease back
	// after a restart, and need not fear to be replaced when it is slow.
	alone bool
}

func (o *controllerOptions) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", defaultAPIAddress, "address of the API; port 0 takes any free one")
	f.StringVar(&o.certFile, "tls-cert", "", "PEM file with a certificate, for https")
	f.StringVar(&o.keyFile, "tls-key", "", "PEM file with the certificate's key")
	f.StringVar(&o.credentials, "credentials", "", "file with the keys that clients sign with, in AWS's format (default: credentials in the data directory, made at the first start)")
	f.StringVar(&o.policy, "policy", policy.Default, "how functions are placed: "+strings.Join(policy.Names(), ", "))
	f.IntVar(&o.sample, "sample", 0, "consider so many invokers, chosen at random, for a placement; 0 is all")
	f.StringVar(&o.eviction, "eviction", invoker.LRU, "which idle containers make room first: "+strings.Join(invoker.Evictions(), " or "))
	f.DurationVar(&o.queueWait, "queue-wait", 10*time.Second, "how long an invocation waits where no invoker has room")
	f.IntVar(&o.concurrency, "concurrency", 10_000, "most invocations at once, of all functions together")
	f.DurationVar(&o.offline, "offline-after", 10*time.Second, "how long an invoker may say nothing before its work is given up")
	f.BoolVar(&o.hostNetwork, "allow-host-network", false, "let functions ask for the host's network")
}

// check finds wrong flags before anything is started.
func (o *controllerOptions) check() error {
	if _, err := policy.New(o.policy, policy.Options{Sample: o.sample}); err != nil {
		return usagef("--policy, --sample: %w", err)
	}
	if _, err := invoker.NewKeepAlive(o.eviction); err != nil {
		return usagef("--eviction: %w", err)
	}
	if (o.certFile == "") != (o.keyFile == "") {
		return usagef("--tls-cert and --tls-key belong together: give both or none")
	}
	if o.concurrency < 1 {
		return usagef("--concurrency %d: must be at least 1", o.concurrency)
	}
	if o.offline < time.Second {
		return usagef("--offline-after %s: must be at least 1s", o.offline)
	}
	if o.queueWait < 0 {
		return usagef("--queue-wait %s: must not be negative", o.queueWait)
	}
	return nil
}

// controllerNode is a controller with its API.
type controllerNode struct {
	api  *httpserver.Server
	keys *sigv4.Keys
	closers
	// failed tells why the controller ended by itself.
	failed chan error
}

// services are what the parts of a server share.
type services struct {
	data     string
	log      *slog.Logger
	registry *prometheus.Registry
	tracing  traceOptions
}

func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// startController starts a controller on a bus and serves its API. The bus
// stays the caller's.
func startController(ctx context.Context, b bus.Bus, o controllerOptions, s services) (n *controllerNode, err error) {
	n = &controllerNode{failed: make(chan error, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	if o.credentials == "" {
		o.credentials = filepath.Join(s.data, "credentials")
	}
	if n.keys, err = sigv4.OpenKeys(o.credentials, s.log); err != nil {
		return nil, usagef("--credentials %s: %w", o.credentials, err)
	}
	tracer, flush, err := s.tracing.open(ctx, "volley-controller")
	if err != nil {
		return nil, err
	}
	n.add(func() error { return flushTraces(flush) })
	place, err := policy.New(o.policy, policy.Options{Seed: uint64(time.Now().UnixNano()), Sample: o.sample})
	if err != nil {
		return nil, usagef("--policy: %w", err)
	}
	keepAlive, err := invoker.NewKeepAlive(o.eviction)
	if err != nil {
		return nil, usagef("--eviction: %w", err)
	}
	// The address is needed before the server can serve: standbys send requests
	// to it.
	handler := &lateHandler{}
	n.api, err = httpserver.Start(ctx, httpserver.Config{Addr: o.listen, Handler: handler, CertFile: o.certFile, KeyFile: o.keyFile, Log: s.log})
	if err != nil {
		return nil, usagef("%w; choose another address with --listen", err)
	}
	n.add(n.api.Close)
	if o.advertise == "" {
		o.advertise = n.api.URL()
	}
	cfg := controller.Config{
		Bus: b, Policy: place, KeepAlive: keepAlive, Advertise: o.advertise, Log: s.log, Registerer: s.registry,
		Tracer: tracer.Tracer("github.com/volley-run/volley/sophon/controller"),
		Images: registries{}, TempDir: s.data,
	}
	cfg.Limits.ImageBytes = 10 << 30
	cfg.Timing.QueueWait, cfg.Timing.OfflineAfter, cfg.Limits.Concurrency = o.queueWait, o.offline, o.concurrency
	if o.alone {
		cfg.ID, cfg.Timing.Lease = "server", 10*time.Second
	}
	c, err := controller.New(cfg)
	if err != nil {
		return nil, err
	}
	// It ends before the API's server does: who waits for a result gets an
	// answer.
	running := make(chan struct{})
	go func() {
		defer close(running)
		if err := c.Run(context.WithoutCancel(ctx)); err != nil {
			n.failed <- fmt.Errorf("run controller: %w", err)
		}
	}()
	n.add(func() error {
		err := c.Close()
		<-running
		return err
	})
	verifier := sigv4.New(sigv4.Options{Service: awshttp.SigningService, Keys: n.keys})
	recent, err := volleyapi.OpenUploads(filepath.Join(s.data, "uploads"), cfg.Limits.ImageBytes)
	if err != nil {
		return nil, err
	}
	api := http.NewServeMux()
	api.Handle(volleyapi.Prefix, volleyapi.New(volleyapi.Config{Platform: c, Verifier: verifier, Uploads: recent, Log: s.log}))
	api.Handle("/", lambda.New(lambda.Config{
		Platform: networkGuard{c, o.hostNetwork}, Verifier: verifier, Keys: n.keys, Uploads: uploads{recent, o.s3, n.keys}, Log: s.log,
	}))
	toLeader, closeIdle := httpserver.ToLeader(c, api, s.log)
	n.add(func() error { closeIdle(); return nil })
	handler.set(withMetrics(toLeader, s.registry))
	return n, c.WaitReady(ctx)
}

// flushTraces sends out the last spans, if that does not take long: what
// collects them may be gone.
func flushTraces(flush func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := flush(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("send the last traces: %w", err)
	}
	return nil
}

// lateHandler answers that the server is starting until it gets a handler.
type lateHandler struct {
	mu      sync.RWMutex
	handler http.Handler
}

func (h *lateHandler) set(to http.Handler) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.handler = to
}

func (h *lateHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.RLock()
	to := h.handler
	h.mu.RUnlock()
	if to == nil {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "the server is starting", http.StatusServiceUnavailable)
		return
	}
	to.ServeHTTP(w, r)
}

// withMetrics adds /metrics for clients on this machine, since it tells the
// names of functions and asks for no signature, and /healthz.
func withMetrics(next http.Handler, registry *prometheus.Registry) http.Handler {
	metrics := promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/metrics":
			host, _, err := net.SplitHostPort(r.RemoteAddr)
			if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
				http.Error(w, "metrics are for clients on the same machine", http.StatusForbidden)
				return
			}
			metrics.ServeHTTP(w, r)
		case "/healthz":
			_, _ = io.WriteString(w, "ok\n") // a client that went away needs no answer
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// registries finds out what image references stand for.
type registries struct{ image.Registries }

// Resolve implements controller.ImageResolver.
func (r registries) Resolve(ctx context.Context, ref string) (resolved, sha256 string, err error) {
	found, err := r.Registries.Resolve(ctx, ref)
	return found.Ref, found.SHA256, err
}

// networkGuard refuses functions that ask for the host's network where that is
// not allowed.
type networkGuard struct {
	*controller.Controller
	allowHost bool
}

func (g networkGuard) check(tags map[string]string) error {
	if !g.allowHost && tags[function.NetworkTag] == string(function.NetworkHost) {
		return &function.Error{Code: function.InvalidParameter, Field: "tags",
			Message: "this server does not let functions use the host's network: start it with --allow-host-network"}
	}
	return nil
}

// CreateFunction implements lambda.Platform.
func (g networkGuard) CreateFunction(ctx context.Context, f function.Function, p controller.Package) (function.Function, error) {
	if err := g.check(f.Tags); err != nil {
		return function.Function{}, err
	}
	return g.Controller.CreateFunction(ctx, f, p)
}

// SetTags implements lambda.Platform.
func (g networkGuard) SetTags(ctx context.Context, name string, change func(map[string]string)) error {
	tags := map[string]string{}
	if change(tags); g.check(tags) != nil {
		return g.check(tags)
	}
	return g.Controller.SetTags(ctx, name, change)
}

// uploads opens packages that were uploaded, or put into the server's object
// store.
type uploads struct {
	recent   *volleyapi.Uploads
	endpoint string // of the object store; empty: there is none
	keys     *sigv4.Keys
}

// Open implements lambda.Uploads.
func (u uploads) Open(ctx context.Context, bucket, key string) (io.ReadCloser, error) {
	if bucket == volleyapi.UploadBucket {
		return u.recent.Open(ctx, key)
	}
	if u.endpoint == "" {
		return nil, function.Errorf(function.InvalidParameter, "this server has no object store: send the code as ZipFile")
	}
	k := u.keys.First()
	s, err := store.Open(ctx, "s3://"+bucket+"?endpoint="+u.endpoint, store.WithCredentials(k.ID, k.Secret))
	if err != nil {
		return nil, function.Errorf(function.InvalidParameter, "open bucket %s: %v", bucket, err)
	}
	return s.Get(ctx, key, 0, -1)
}

// hostName is this machine's name, for invokers.
func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "invoker"
	}
	name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '-'
	}, name)
	return name[:min(len(name), 32)]
}
