package invoker

import (
	"slices"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

func TestInvokerTracesStartAndFunctionBelowTheCallersSpan(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	recorder := tracetest.NewSpanRecorder()
	provider := sdk.NewTracerProvider(sdk.WithSpanProcessor(recorder))
	live(t, func(c *Config, _ *fakeDriver) { c.Tracer = provider }, func(t *testing.T, r *rig) {
		run := job("j", "c1", fakeWork{RunMs: 50, Fail: true})
		run.TraceParent = parent
		r.run(run)
		r.after(time.Second)
		r.result("j")
		spans := recorder.Ended()
		var names []string
		for _, s := range spans {
			names = append(names, s.Name())
		}
		if !slices.Equal(names, []string{"start", "function", "invoker.run"}) {
			t.Fatalf("the spans are %v", names)
		}
		start, function, whole := spans[0], spans[1], spans[2]
		if id := whole.Parent().SpanID().String(); id != "b7ad6b7169203331" {
			t.Errorf("the parent of the run is %s", id)
		}
		for _, s := range []sdk.ReadOnlySpan{start, function} {
			if s.Parent().SpanID() != whole.SpanContext().SpanID() {
				t.Errorf("%s is no child of the run", s.Name())
			}
		}
		if took := start.EndTime().Sub(start.StartTime()); took != 100*time.Millisecond {
			t.Errorf("the start's span lasts %v", took)
		}
		if function.Status().Code != codes.Error || whole.Status().Code == codes.Error {
			t.Errorf("the states are %v and %v", function.Status(), whole.Status())
		}
		if got := r.driver.traceParent("j"); got == parent || got == "" {
			t.Errorf("the function was given %q", got)
		}
	})
}
