package agent_test

import (
	"slices"
	"testing"
	"time"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox/agent"
)

func TestCommandRunsEachFamily(t *testing.T) {
	for runtime, want := range map[string][]string{
		"python3.13":      {"python3", "/var/runtime/bootstrap.py"},
		"nodejs22.x":      {"node", "/var/runtime/bootstrap.mjs"},
		"provided.al2023": {"/var/task/bootstrap"},
		"go1.x":           {"/var/task/bootstrap"},
	} {
		f := &function.Function{Name: "f", PackageType: function.Zip, Runtime: runtime, Handler: "a.b", Timeout: time.Minute}
		boot, err := agent.Command(f, "box", agent.Layout{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(boot.Argv, want) || boot.Dir != "/var/task" || boot.InitTimeout != time.Minute || boot.ARN != function.ARN("f") {
			t.Errorf("%s: %+v", runtime, boot)
		}
	}
	f := &function.Function{Name: "f", PackageType: function.Zip, Runtime: "cobol"}
	if _, err := agent.Command(f, "box", agent.Layout{}, nil); function.CodeOf(err) != function.InvalidParameter {
		t.Errorf("an unknown runtime: %v", err)
	}
}

func TestCommandSetsTheEnvironmentAndTheUsersOnTop(t *testing.T) {
	f := &function.Function{
		Name: "f", PackageType: function.Zip, Runtime: "python3", Handler: "a.b", MemoryMB: 512,
		Environment: map[string]string{"PATH": "/mine", "MODE": "x=y"},
	}
	boot, err := agent.Command(f, "box", agent.Layout{TaskRoot: "/code", TmpDir: "/scratch"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"PATH=/mine", "MODE=x=y", "LAMBDA_TASK_ROOT=/code", "TMPDIR=/scratch", "LAMBDA_RUNTIME_DIR=/var/runtime", "_HANDLER=a.b",
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE=512", "AWS_EXECUTION_ENV=AWS_Lambda_python3", "AWS_LAMBDA_LOG_STREAM_NAME=[$LATEST]box",
	} {
		if !slices.Contains(boot.Env, want) {
			t.Errorf("%s is missing in %q", want, boot.Env)
		}
	}
	if !slices.IsSorted(boot.Env) {
		t.Errorf("the order is left to chance: %q", boot.Env)
	}
}

func TestCommandOverridesAnImageAsContainerEnginesDo(t *testing.T) {
	image := &agent.ImageDefaults{EntryPoint: []string{"/entry", "-v"}, Command: []string{"app.handler"}, Env: []string{"PATH=/image", "A=1"}, WorkingDir: "/app"}
	for name, tc := range map[string]struct {
		config  function.ImageConfig
		image   *agent.ImageDefaults
		argv    []string
		dir     string
		handler string
	}{
		"as it is":        {function.ImageConfig{}, image, []string{"/entry", "-v", "app.handler"}, "/app", "app.handler"},
		"another command": {function.ImageConfig{Command: []string{"b.c"}}, image, []string{"/entry", "-v", "b.c"}, "/app", "b.c"},
		"another entry":   {function.ImageConfig{EntryPoint: []string{"/other"}}, image, []string{"/other"}, "/app", "app.handler"},
		"another place":   {function.ImageConfig{WorkingDirectory: "/w"}, image, []string{"/entry", "-v", "app.handler"}, "/w", "app.handler"},
		"no place":        {function.ImageConfig{EntryPoint: []string{"/x"}}, &agent.ImageDefaults{}, []string{"/x"}, "/", ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := &function.Function{Name: "f", PackageType: function.Image, ImageConfig: tc.config, Environment: map[string]string{"A": "2"}}
			boot, err := agent.Command(f, "box", agent.Layout{}, tc.image)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(boot.Argv, tc.argv) || boot.Dir != tc.dir || !slices.Contains(boot.Env, "A=2") {
				t.Errorf("boot %+v", boot)
			}
			if tc.handler != "" && !slices.Contains(boot.Env, "_HANDLER="+tc.handler) {
				t.Errorf("environment %q", boot.Env)
			}
		})
	}
	f := &function.Function{Name: "f", PackageType: function.Image}
	for _, image := range []*agent.ImageDefaults{nil, {}} {
		if _, err := agent.Command(f, "box", agent.Layout{}, image); function.CodeOf(err) != function.InvalidImage {
			t.Errorf("image %v: %v, want InvalidImage", image, err)
		}
	}
}
