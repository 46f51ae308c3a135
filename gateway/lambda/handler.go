package lambda

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/gateway/awshttp"
	"github.com/volley-run/volley/internal/sigv4"
)

const (
	// maxConfigBytes bounds the body of a request without payload or package.
	maxConfigBytes = 1 << 20
	// maxPackageBytes bounds the body of a request with a package in it: 50 MB
	// in base64, and what surrounds them.
	maxPackageBytes = 72 << 20
)

// Config is what a Handler needs.
type Config struct {
	// Platform runs the functions.
	Platform Platform
	// Verifier checks signatures; it is for the service awshttp.SigningService.
	Verifier *sigv4.Verifier
	// Keys has the secrets that addresses for downloads are signed with: those
	// that Verifier accepts.
	Keys sigv4.KeySource
	// Uploads serves S3Bucket and S3Key; nil refuses them.
	Uploads Uploads
	// Log takes the platform's faults; nil is slog.Default().
	Log *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Handler serves the Lambda API: every path that begins with the date of one of
// its versions, and an error by AWS's name for all others. It may be used
// concurrently.
type Handler struct {
	platform Platform
	verifier *sigv4.Verifier
	keys     sigv4.KeySource
	uploads  Uploads
	log      *slog.Logger
	now      func() time.Time
}

// New returns a Handler. There is nothing to close.
func New(c Config) *Handler {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Handler{platform: c.Platform, verifier: c.Verifier, keys: c.Keys, uploads: c.Uploads, log: c.Log, now: c.Now}
}

// call is one request on its way through the handler.
type call struct {
	w http.ResponseWriter
	r *http.Request
	// id is the request's, and of what it invokes the invocation's.
	id string
	// given is the function in the path as it was sent; target what it means.
	given string
	target
	// item is what follows the operation in the path, such as an alias.
	item  string
	body  []byte
	claim *sigv4.Claim
}

func (c *call) ctx() context.Context { return c.r.Context() }

// query returns a parameter of the request's query.
func (c *call) query(name string) string {
	if c.r.URL.RawQuery == "" {
		return ""
	}
	return c.r.URL.Query().Get(name)
}

// json answers with a value.
func (c *call) json(status int, value any) error { return awshttp.WriteJSON(c.w, status, value) }

// empty answers with nothing.
func (c *call) empty() error {
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{w: w, r: r, id: awshttp.Begin(w)}
	if err := h.serve(c); err != nil {
		awshttp.WriteError(w, r, h.log, named(err))
	}
}

func (h *Handler) serve(c *call) error {
	to, rest := split(c.r)
	op, known := operations[to]
	limit := int64(maxConfigBytes)
	if known {
		limit = op.maxBody
	}
	var err error
	if c.claim, c.body, err = awshttp.ReadSigned(c.w, c.r, h.verifier, limit); err != nil {
		return err
	}
	if !known {
		return unknownOperation(c)
	}
	c.given, c.item = rest.name, rest.item
	if to.named {
		if c.target, err = parseTarget(c.given, c.query("Qualifier")); err != nil {
			return err
		}
	}
	return op.run(h, c)
}

func unknownOperation(c *call) error {
	return awshttp.NewError(awshttp.UnknownOperation,
		"there is no operation "+c.r.Method+" "+quote(c.r.URL.Path)+"; docs/lambda-api.md lists those that are supported")
}

// route is the part of a request that says what to do:
// METHOD /version/kind/{name}/operation/{item}.
type route struct {
	method, version, kind string
	named                 bool
	operation             string
	itemised              bool
}

// rest is the other part.
type rest struct{ name, item string }

// split takes a request's method and path apart. Slashes at the end do not
// count.
func split(r *http.Request) (route, rest) {
	path := strings.TrimSuffix(r.URL.Path, "/")
	path = strings.TrimPrefix(path, "/")
	to := route{method: r.Method}
	var with rest
	to.version, path, _ = strings.Cut(path, "/")
	to.kind, path, _ = strings.Cut(path, "/")
	with.name, path, _ = strings.Cut(path, "/")
	to.operation, with.item, _ = strings.Cut(path, "/")
	to.named, to.itemised = with.name != "", with.item != ""
	return to, with
}

// operation is how a route is served.
type operation struct {
	run     func(*Handler, *call) error
	maxBody int64
}

// The versions of the API in paths.
const (
	v2014       = "2014-11-13"
	v2015       = "2015-03-31"
	v2016       = "2016-08-19"
	v2017       = "2017-10-31"
	v2017Tags   = "2017-03-31"
	v2019       = "2019-09-30"
	v2019Async  = "2019-09-25"
	v2021Stream = "2021-11-15"
)

// operations has all routes that are served. It is constant.
var operations = map[route]operation{
	{http.MethodPost, v2015, "functions", true, "invocations", false}:                          {(*Handler).invoke, function.MaxSyncPayloadBytes},
	{http.MethodPost, v2021Stream, "functions", true, "response-streaming-invocations", false}: {(*Handler).invokeStream, function.MaxSyncPayloadBytes},
	{http.MethodPost, v2014, "functions", true, "invoke-async", false}:                         {(*Handler).invokeAsync, function.MaxAsyncPayloadBytes},

	{http.MethodPost, v2015, "functions", false, "", false}:             {(*Handler).createFunction, maxPackageBytes},
	{http.MethodGet, v2015, "functions", false, "", false}:              {(*Handler).listFunctions, maxConfigBytes},
	{http.MethodGet, v2015, "functions", true, "", false}:               {(*Handler).getFunction, maxConfigBytes},
	{http.MethodDelete, v2015, "functions", true, "", false}:            {(*Handler).deleteFunction, maxConfigBytes},
	{http.MethodGet, v2015, "functions", true, "configuration", false}:  {(*Handler).getConfiguration, maxConfigBytes},
	{http.MethodPut, v2015, "functions", true, "configuration", false}:  {(*Handler).updateConfiguration, maxConfigBytes},
	{http.MethodPut, v2015, "functions", true, "code", false}:           {(*Handler).updateCode, maxPackageBytes},
	{http.MethodGet, v2015, "functions", true, "code", false}:           {(*Handler).downloadCode, maxConfigBytes},
	{http.MethodGet, v2015, "functions", true, "versions", false}:       {(*Handler).listVersions, maxConfigBytes},
	{http.MethodPost, v2015, "functions", true, "versions", false}:      {(*Handler).publishVersion, maxConfigBytes},
	{http.MethodGet, v2015, "functions", true, "aliases", false}:        {(*Handler).listAliases, maxConfigBytes},
	{http.MethodGet, v2015, "functions", true, "aliases", true}:         {(*Handler).getAlias, maxConfigBytes},
	{http.MethodGet, v2015, "functions", true, "policy", false}:         {(*Handler).getPolicy, maxConfigBytes},
	{http.MethodGet, v2016, "account-settings", false, "", false}:       {(*Handler).accountSettings, maxConfigBytes},
	{http.MethodGet, v2017Tags, "tags", true, "", false}:                {(*Handler).listTags, maxConfigBytes},
	{http.MethodPost, v2017Tags, "tags", true, "", false}:               {(*Handler).tag, maxConfigBytes},
	{http.MethodDelete, v2017Tags, "tags", true, "", false}:             {(*Handler).untag, maxConfigBytes},
	{http.MethodPut, v2017, "functions", true, "concurrency", false}:    {(*Handler).putConcurrency, maxConfigBytes},
	{http.MethodDelete, v2017, "functions", true, "concurrency", false}: {(*Handler).deleteConcurrency, maxConfigBytes},
	{http.MethodGet, v2019, "functions", true, "concurrency", false}:    {(*Handler).getConcurrency, maxConfigBytes},

	{http.MethodPut, v2019, "functions", true, "provisioned-concurrency", false}:    {(*Handler).putProvisioned, maxConfigBytes},
	{http.MethodGet, v2019, "functions", true, "provisioned-concurrency", false}:    {(*Handler).getProvisioned, maxConfigBytes},
	{http.MethodDelete, v2019, "functions", true, "provisioned-concurrency", false}: {(*Handler).deleteProvisioned, maxConfigBytes},

	{http.MethodPut, v2019Async, "functions", true, "event-invoke-config", false}:    {(*Handler).putEventConfig, maxConfigBytes},
	{http.MethodPost, v2019Async, "functions", true, "event-invoke-config", false}:   {(*Handler).updateEventConfig, maxConfigBytes},
	{http.MethodGet, v2019Async, "functions", true, "event-invoke-config", false}:    {(*Handler).getEventConfig, maxConfigBytes},
	{http.MethodDelete, v2019Async, "functions", true, "event-invoke-config", false}: {(*Handler).deleteEventConfig, maxConfigBytes},
	{http.MethodGet, v2019Async, "functions", true, "event-invoke-config", true}:     {(*Handler).listEventConfigs, maxConfigBytes},
}
