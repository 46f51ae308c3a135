package httpserver

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"github.com/volley-run/volley/gateway/awshttp"
)

// forwardedHeader marks a request that a controller which does not lead has
// sent on, so that none goes in circles. It is no "X-Amz-" header, which would
// have to be signed.
const forwardedHeader = "Volley-Forwarded"

// Leadership tells who leads: a controller.Controller.
type Leadership interface {
	// Leader returns the id and the address of the controller that leads, and
	// whether it is this one. Without a leader the id is empty.
	Leader() (id, advertise string, self bool)
}

// ToLeader returns a handler that serves with next while this controller
// leads, and sends requests on to the leader otherwise. Without a leader it
// answers 503 with AWS's name for that. Advertised addresses are URLs, or
// host:port for plain HTTP. The client's Host header is kept, since signatures
// cover it. The second result closes idle connections to leaders; call it when
// the handler is not used any longer.
func ToLeader(l Leadership, next http.Handler, log *slog.Logger) (handler http.Handler, closeIdle func()) {
	if log == nil {
		log = slog.Default()
	}
	transport := &http.Transport{
		MaxIdleConnsPerHost: 256, IdleConnTimeout: time.Minute, DisableCompression: true,
		TLSHandshakeTimeout: 10 * time.Second,
	}
	h := &toLeader{leadership: l, next: next, log: log}
	h.proxy = &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1, // streams
		ErrorLog:      slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		Rewrite: func(r *httputil.ProxyRequest) {
			address := r.In.Context().Value(leaderKey{}).(*url.URL)
			r.SetURL(address)
			r.Out.Host = r.In.Host
			r.Out.Header.Set(forwardedHeader, "1")
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			h.refuse(w, r, "the leading controller cannot be reached", err)
		},
	}
	return h, transport.CloseIdleConnections
}

type toLeader struct {
	leadership Leadership
	next       http.Handler
	proxy      *httputil.ReverseProxy
	log        *slog.Logger
}

// leaderKey is the key of the leader's address in a request's context.
type leaderKey struct{}

// ServeHTTP implements http.Handler.
func (h *toLeader) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id, advertise, self := h.leadership.Leader()
	switch {
	case self:
		h.next.ServeHTTP(w, r)
		return
	case id == "" || advertise == "":
		h.refuse(w, r, "no controller leads at the moment", nil)
		return
	case r.Header.Get(forwardedHeader) != "":
		h.refuse(w, r, "the leading controller is changing", nil)
		return
	}
	address, err := leaderURL(advertise)
	if err != nil {
		h.refuse(w, r, "the leading controller cannot be reached", err)
		return
	}
	h.proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), leaderKey{}, address)))
}

func leaderURL(advertise string) (*url.URL, error) {
	if !strings.Contains(advertise, "://") {
		advertise = "http://" + advertise
	}
	u, err := url.Parse(advertise)
	if err == nil && u.Host == "" {
		err = errors.New("the leader's address has no host")
	}
	return u, err
}

func (h *toLeader) refuse(w http.ResponseWriter, r *http.Request, message string, err error) {
	if err != nil {
		h.log.Warn(message, "error", err)
	}
	if w.Header().Get(awshttp.RequestIDHeader) == "" {
		awshttp.Begin(w)
	}
	e := awshttp.NewError(awshttp.Service, message+": try again")
	e.Status, e.RetryAfter = http.StatusServiceUnavailable, time.Second
	awshttp.WriteError(w, r, h.log, e)
}
