package invoker

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox"
)

func stubSpec(id string, env map[string]string) sandbox.Spec {
	return sandbox.Spec{ID: id, Function: &function.Function{Name: "f", MemoryMB: 128, Environment: env}}
}

// create makes a stub's sandbox, or fails the test.
func create(t testing.TB, s *Stub, spec sandbox.Spec) sandbox.Sandbox {
	t.Helper()
	b, err := s.Create(context.Background(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestStubTakesTheTimeThatItsModelSays(t *testing.T) {
	m := Model{ColdStart: 500 * time.Millisecond, Init: 200 * time.Millisecond, CreationsPerSecond: 10}
	tests := []struct {
		name string
		n    int
		env  map[string]string
		want time.Duration
	}{
		{"for one", 1, nil, 700 * time.Millisecond},
		{"for many at once, which slow each other down", 20, nil, 2200 * time.Millisecond},
		{"for a function with its own", 1, map[string]string{StubColdStartVariable: "1s", StubInitVariable: "0s"}, time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := NewStub(m)
				began := time.Now()
				var wg sync.WaitGroup
				for i := range tt.n {
					wg.Go(func() {
						if _, err := s.Create(t.Context(), stubSpec("c"+strconv.Itoa(i), tt.env)); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				if took := time.Since(began); (took - tt.want).Abs() > time.Millisecond {
					t.Errorf("it took %v, want %v", took, tt.want)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestStubGivesUpACreation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStub(Model{ColdStart: time.Second, CreationsPerSecond: 1})
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if _, err := s.Create(ctx, stubSpec("c1", nil)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the error is %v", err)
		}
		began := time.Now()
		create(t, s, stubSpec("c2", nil))
		if took := time.Since(began); took != time.Second {
			t.Errorf("the next one took %v", took)
		}
	})
}

func TestStubRunsAsLongAsThePayloadSays(t *testing.T) {
	tests := []struct {
		name, payload string
		want          time.Duration
		failed        bool
	}{
		{"nothing", ``, 0, false},
		{"some other event", `{"a": 1}`, 0, false},
		{"a number", `{"runMs": 250}`, 250 * time.Millisecond, false},
		{"a fraction", `{"x":1,"runMs":1.5,"y":2}`, 1500 * time.Microsecond, false},
		{"no number", `{"runMs":"long"}`, 0, true},
		{"a negative number", `{"runMs":-1}`, 0, true},
		{"more than the timeout", `{"runMs":60000}`, 3 * time.Second, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := create(t, NewStub(Model{}), stubSpec("c", nil))
				began := time.Now()
				resp, err := b.Invoke(t.Context(), sandbox.Request{ID: "j", Payload: []byte(tt.payload), Deadline: began.Add(3 * time.Second)})
				if err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took != tt.want || (resp.FunctionError != "") != tt.failed {
					t.Errorf("it took %v and answered %s %s", took, resp.FunctionError, resp.Payload)
				}
			})
		})
	}
}

func TestStubsSandboxEndsWithItsInvocationOrDriver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStub(Model{})
		b := create(t, s, stubSpec("c1", nil))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.Invoke(ctx, sandbox.Request{Payload: []byte(`{"runMs":5000}`)}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the error is %v", err)
		}
		<-b.Done()
		if _, err := b.Invoke(t.Context(), sandbox.Request{}); !errors.Is(err, sandbox.ErrNotStarted) {
			t.Errorf("the error is %v", err)
		}
		c := create(t, s, stubSpec("c2", nil))
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		<-c.Done()
		if _, err := s.Create(t.Context(), stubSpec("c3", nil)); err == nil {
			t.Error("a closed driver makes a sandbox")
		}
	})
}

func TestStubTellsOfAnEnvironmentThatItCannotRead(t *testing.T) {
	_, err := NewStub(Model{}).Create(t.Context(), stubSpec("c", map[string]string{StubInitVariable: "soon"}))
	if _, ok := errors.AsType[*sandbox.InitError](err); !ok {
		t.Errorf("the error is %v", err)
	}
}

func FuzzStubsPayload(f *testing.F) {
	for _, s := range []string{``, `{"runMs": 1.5}`, `{"runMs"`, `"runMs":1e999`, `{"runMs":NaN}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		d, err := runTime(payload)
		if d < 0 || d > 1e9*time.Millisecond || err != nil && d != 0 {
			t.Errorf("run time %v, %v", d, err)
		}
	})
}
