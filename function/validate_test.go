package function

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func valid() *Function {
	f := &Function{Name: "resize-image_2", Runtime: "python3.12", Handler: "app.main.handler"}
	f.SetDefaults()
	return f
}

func TestDefaultsMakeAFunctionValid(t *testing.T) {
	f := valid()
	if err := f.Validate(); err != nil {
		t.Error(err)
	}
	if f.MemoryMB != 128 || f.Timeout != 3*time.Second || f.TmpMB != 512 || f.Network != NetworkNone || f.PackageType != Zip {
		t.Errorf("defaults %+v", f)
	}
	before := *f
	f.SetDefaults()
	if f.MemoryMB != before.MemoryMB || f.Timeout != before.Timeout {
		t.Error("defaults replace what is set")
	}
}

func TestValidateAccepts(t *testing.T) {
	zero := 0
	for name, change := range map[string]func(*Function){
		"the smallest limits":           func(f *Function) { f.MemoryMB, f.Timeout, f.TmpMB = 32, time.Second, 16 },
		"the greatest limits":           func(f *Function) { f.MemoryMB, f.Timeout, f.TmpMB = 10240, 900*time.Second, 10240 },
		"a name of 64 characters":       func(f *Function) { f.Name = strings.Repeat("a", 64) },
		"an executable without handler": func(f *Function) { f.Runtime, f.Handler = "provided.al2023", "" },
		"a handler in a directory":      func(f *Function) { f.Runtime, f.Handler = "nodejs22.x", "src/index.handler" },
		"an image":                      func(f *Function) { f.PackageType, f.Runtime, f.Handler = Image, "", "" },
		"an image with another command": func(f *Function) {
			f.PackageType, f.Runtime, f.Handler, f.ImageConfig.Command = Image, "", "", []string{"x"}
		},
		"a reserved concurrency of none": func(f *Function) { f.ReservedConcurrency = &zero },
		"an environment of 4 KiB":        func(f *Function) { f.Environment = map[string]string{"AB": strings.Repeat("x", 4094)} },
		"destinations":                   func(f *Function) { f.Async.OnFailure, f.Async.OnSuccess = "dead-letters", "done" },
	} {
		t.Run(name, func(t *testing.T) {
			f := valid()
			change(f)
			if err := f.Validate(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestValidateNamesTheFieldAndTheRemedy(t *testing.T) {
	minus, one := -1, 1
	for name, tc := range map[string]struct {
		change        func(*Function)
		field, remedy string
	}{
		"no name":                    {func(f *Function) { f.Name = "" }, "name", "use 1 to 64"},
		"a name that is too long":    {func(f *Function) { f.Name = strings.Repeat("a", 65) }, "name", "use 1 to 64"},
		"a name with a dot":          {func(f *Function) { f.Name = "a.b" }, "name", "use 1 to 64"},
		"a name with a line end":     {func(f *Function) { f.Name = "a\n" }, "name", "use 1 to 64"},
		"no runtime":                 {func(f *Function) { f.Runtime = "" }, "runtime", "python3.12"},
		"an unknown runtime":         {func(f *Function) { f.Runtime = "cobol" }, "runtime", "provided.al2023"},
		"a runtime for an image":     {func(f *Function) { f.PackageType = Image }, "runtime", "leave it out"},
		"an unknown package type":    {func(f *Function) { f.PackageType = "Tar" }, "packageType", "use Zip or Image"},
		"no handler for Python":      {func(f *Function) { f.Handler = "" }, "handler", "lambda_function.lambda_handler"},
		"no handler for Node":        {func(f *Function) { f.Runtime, f.Handler = "node", "" }, "handler", "index.handler"},
		"a handler without function": {func(f *Function) { f.Handler = "main" }, "handler", "module, dot, function"},
		"a handler with a space":     {func(f *Function) { f.Handler = "main.a b" }, "handler", "take them out"},
		"too little memory":          {func(f *Function) { f.MemoryMB = 31 }, "memoryMB", "use 32 to 10240"},
		"too much memory":            {func(f *Function) { f.MemoryMB = 10241 }, "memoryMB", "use 32 to 10240"},
		"too short a timeout":        {func(f *Function) { f.Timeout = time.Millisecond }, "timeout", "use 1s to 15m0s"},
		"too long a timeout":         {func(f *Function) { f.Timeout = time.Hour }, "timeout", "use 1s to 15m0s"},
		"too small a /tmp":           {func(f *Function) { f.TmpMB = 1 }, "tmpMB", "use 16 to 10240"},
		"an unknown network":         {func(f *Function) { f.Network = "mars" }, "network", `use "none", "host", or "net:" and the name`},
		"a variable with a dash":     {func(f *Function) { f.Environment = map[string]string{"A-B": ""} }, "environment", "go on with letters"},
		"a reserved variable":        {func(f *Function) { f.Environment = map[string]string{"AWS_REGION": "x"} }, "environment", "choose another name"},
		"a value with a NUL":         {func(f *Function) { f.Environment = map[string]string{"AB": "\x00"} }, "environment", "take it out"},
		"too large an environment":   {func(f *Function) { f.Environment = map[string]string{"AB": strings.Repeat("x", 4095)} }, "environment", "use at most 4096"},
		"a negative reservation":     {func(f *Function) { f.ReservedConcurrency = &minus }, "reservedConcurrency", "use 0 or more"},
		"a negative provision":       {func(f *Function) { f.ProvisionedConcurrency = -1 }, "provisionedConcurrency", "use 0 or more"},
		"more provided than reserved": {func(f *Function) { f.ReservedConcurrency, f.ProvisionedConcurrency = &one, 2 },
			"provisionedConcurrency", "lower the one"},
		"too many retries":           {func(f *Function) { f.Async.MaxRetries = 3 }, "async.maxRetries", "use 0 to 2"},
		"too short an age":           {func(f *Function) { f.Async.MaxAge = time.Second }, "async.maxAge", "use 1m0s to 6h0m0s"},
		"a destination with a slash": {func(f *Function) { f.Async.OnFailure = "a/b" }, "async.onFailure", "use 1 to 64"},
		"too long a description":     {func(f *Function) { f.Description = strings.Repeat("x", 257) }, "description", "at most 256"},
		"an image's settings":        {func(f *Function) { f.ImageConfig.Command = []string{"x"} }, "imageConfig", "leave it out"},
		"a relative directory": {func(f *Function) {
			f.PackageType, f.Runtime, f.Handler, f.ImageConfig.WorkingDirectory = Image, "", "", "app"
		},
			"imageConfig.workingDirectory", "begin it with /"},
	} {
		t.Run(name, func(t *testing.T) {
			f := valid()
			tc.change(f)
			var e *Error
			if err := f.Validate(); !errors.As(err, &e) {
				t.Fatalf("Validate = %v, want an *Error", err)
			}
			if e.Code != InvalidParameter || e.Field != tc.field || !strings.Contains(e.Message, tc.remedy) {
				t.Errorf("error %+v; want field %s and %q", e, tc.field, tc.remedy)
			}
		})
	}
}

func TestEveryRuntimeHasAFamily(t *testing.T) {
	families := map[Family]int{}
	for _, name := range Runtimes() {
		family, ok := RuntimeFamily(name)
		if !ok {
			t.Errorf("%s has no family", name)
		}
		families[family]++
	}
	for _, family := range []Family{Python, Node, Provided} {
		if families[family] < 2 {
			t.Errorf("families %v", families)
		}
		if got, ok := RuntimeFamily(string(family)); !ok || got != family {
			t.Errorf("%s is no runtime of its own family", family)
		}
	}
	if _, ok := RuntimeFamily("ruby3.3"); ok {
		t.Error("ruby3.3 has a family")
	}
}
