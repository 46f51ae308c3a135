package controller

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// tracing makes spans of invocations; its zero value makes none and costs a
// comparison.
type tracing struct {
	tracer trace.Tracer
	format propagation.TraceContext
}

func newTracing(t trace.Tracer) tracing { return tracing{tracer: t} }

// callTrace is the spans of one call: "invoke", and under it "schedule" until
// it is placed, and "run" from then on. A nil one does nothing.
type callTrace struct {
	tracing  *tracing
	ctx      context.Context
	invoke   trace.Span
	schedule trace.Span
	// run is guarded by the term's mutex until the call is done.
	run trace.Span
}

// begin starts the span of a call, under the one that the client or the
// context names.
func (tr *tracing) begin(ctx context.Context, k *call) *callTrace {
	if tr.tracer == nil {
		return nil
	}
	if k.inv.TraceParent != "" && !trace.SpanContextFromContext(ctx).IsValid() {
		ctx = tr.format.Extract(ctx, propagation.MapCarrier{"traceparent": k.inv.TraceParent})
	}
	ct := &callTrace{tracing: tr}
	ct.ctx, ct.invoke = tr.tracer.Start(ctx, "invoke", trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		attribute.String("faas.invoked_name", k.inv.Function),
		attribute.String("faas.invocation_id", k.inv.ID),
		attribute.Int("volley.attempt", k.inv.Attempt)))
	_, ct.schedule = tr.tracer.Start(ct.ctx, "schedule")
	return ct
}

// placed ends "schedule", begins "run" and returns the trace context for the
// invoker. After a refusal it begins another run.
func (ct *callTrace) placed(invoker string) string {
	if ct.schedule != nil {
		ct.schedule.End()
		ct.schedule = nil
	}
	if ct.run != nil {
		ct.run.SetStatus(codes.Error, "given back")
		ct.run.End()
	}
	ctx, run := ct.tracing.tracer.Start(ct.ctx, "run", trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(attribute.String("volley.invoker", invoker)))
	ct.run = run
	carrier := propagation.MapCarrier{}
	ct.tracing.format.Inject(ctx, carrier)
	return carrier["traceparent"]
}

// end ends all spans of a call that is done, or that nobody waits for.
func (ct *callTrace) end(t *term, k *call, err error) {
	if ct == nil {
		return
	}
	if t != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
	}
	if ct.schedule != nil {
		ct.schedule.End()
	}
	if ct.run != nil {
		if err == nil {
			ct.run.SetAttributes(
				attribute.Bool("faas.coldstart", k.result.Cold),
				attribute.String("volley.container", k.result.Container),
				attribute.String("volley.invoker", k.result.Invoker),
				attribute.Float64("volley.run_seconds", k.result.Run.Seconds()))
		}
		ct.run.End()
	}
	switch {
	case err != nil:
		ct.invoke.SetStatus(codes.Error, err.Error())
	case k.result.FunctionError != "":
		ct.invoke.SetStatus(codes.Error, k.result.FunctionError)
	}
	ct.invoke.SetAttributes(attribute.Float64("volley.total_seconds", time.Since(k.accepted).Seconds()))
	ct.invoke.End()
	// A run that is placed after its caller has gone has no span of its own.
	ct.schedule, ct.run = nil, nil
}
