package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// logOptions say what the commands that serve log.
type logOptions struct {
	level  string
	format string
}

func (o *logOptions) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.level, "log-level", "info", "what to log: debug, info, warn or error")
	cmd.Flags().StringVar(&o.format, "log-format", "text", "how: text or json")
}

func (o *logOptions) open(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.level)); err != nil {
		return nil, usagef("--log-level %q: must be debug, info, warn or error", o.level)
	}
	h := &slog.HandlerOptions{Level: level}
	switch o.format {
	case "text":
		return slog.New(slog.NewTextHandler(w, h)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, h)), nil
	}
	return nil, usagef("--log-format %q: must be text or json", o.format)
}

func registerData(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "data", "", "directory for what must be kept (default: $"+envHome+", else ~/.volley)")
}

// dataDir returns the data directory, which it makes, as an absolute path.
func dataDir(named string) (string, error) { return makeDataDir(named, "--data") }

// makeDataDir is dataDir for a flag of another name.
func makeDataDir(named, flag string) (string, error) {
	dir := named
	if dir == "" {
		var err error
		if dir, err = homeDir(); err != nil {
			return "", err
		}
	}
	dir, err := filepath.Abs(dir)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return "", usagef("data directory: %w; choose another with %s", err, flag)
	}
	return dir, nil
}

// traceOptions say where spans go.
type traceOptions struct {
	endpoint string
}

func (o *traceOptions) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.endpoint, "otlp", "", "address of an OpenTelemetry collector (OTLP over HTTP) that gets a trace of each invocation, such as http://127.0.0.1:4318")
}

// open returns a provider of tracers, and what sends out the last spans.
func (o *traceOptions) open(ctx context.Context, service string) (trace.TracerProvider, func(context.Context) error, error) {
	if o.endpoint == "" {
		return noop.NewTracerProvider(), func(context.Context) error { return nil }, nil
	}
	if !strings.Contains(o.endpoint, "://") {
		return nil, nil, usagef("--otlp %q: must be an address such as http://127.0.0.1:4318", o.endpoint)
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(strings.TrimSuffix(o.endpoint, "/")+"/v1/traces"))
	if err != nil {
		return nil, nil, usagef("--otlp %q: %w", o.endpoint, err)
	}
	p := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter, sdktrace.WithBatchTimeout(time.Second)),
		sdktrace.WithResource(resource.NewSchemaless(semconv.ServiceName(service), semconv.ServiceVersion(version()))))
	return p, p.Shutdown, nil
}

// closers are what a part of the platform has to undo at its end.
type closers []func() error

func (c *closers) add(f func() error) { *c = append(*c, f) }

// close undoes everything, the last first. It may be called again.
func (c *closers) close() error {
	var errs []error
	for _, f := range slices.Backward(*c) {
		errs = append(errs, f())
	}
	*c = nil
	return errors.Join(errs...)
}
