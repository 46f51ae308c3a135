package invoker

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/volley-run/volley/sophon/wire"
)

// runSpan begins the span of an invocation on this node. It is nil where
// nothing is traced.
func (v *Invoker) runSpan(r *wire.Run, now time.Time) trace.Span {
	if v.tracer == nil {
		return nil
	}
	carrier := propagation.MapCarrier{"traceparent": r.GetTraceParent()}
	ctx := propagation.TraceContext{}.Extract(context.Background(), carrier)
	_, span := v.tracer.Start(ctx, "invoker.run", trace.WithTimestamp(now), trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithAttributes(
			attribute.String("faas.invocation_id", r.GetRequestId()),
			attribute.String("volley.function", r.GetFunctionKey()),
			attribute.String("volley.invoker", v.config.Name),
		))
	return span
}

// endRunSpan ends the span of an invocation.
func endRunSpan(span trace.Span, res *wire.Result) {
	if span == nil {
		return
	}
	span.SetAttributes(attribute.Bool("faas.coldstart", res.GetCold()), attribute.String("volley.container", res.GetContainer()))
	if len(res.GetError()) > 0 {
		span.SetStatus(codes.Error, "the platform failed")
	}
	span.End()
}

// startSpan begins the span of a container's start for an invocation, and
// returns what ends it.
func (v *Invoker) startSpan(inv *invocation, name string) (end func(error)) {
	if inv == nil || inv.span == nil {
		return func(error) {}
	}
	_, span := v.tracer.Start(trace.ContextWithSpan(context.Background(), inv.span), name)
	return func(err error) {
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}
}

// functionSpan is the span of function code. The zero value is none.
type functionSpan struct {
	span        trace.Span
	traceParent string // for the function
}

func (v *Invoker) functionSpan(inv *invocation) functionSpan {
	if inv.span == nil {
		return functionSpan{}
	}
	ctx, span := v.tracer.Start(trace.ContextWithSpan(context.Background(), inv.span), "function")
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return functionSpan{span, carrier["traceparent"]}
}

func (s functionSpan) end(err error, functionError string) {
	switch {
	case s.span == nil:
		return
	case err != nil:
		s.span.SetStatus(codes.Error, err.Error())
	case functionError != "":
		s.span.SetStatus(codes.Error, "the function returned an error: "+functionError)
	}
	s.span.End()
}
