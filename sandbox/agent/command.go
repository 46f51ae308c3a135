package agent

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox/agent/frame"
	"github.com/volley-run/volley/sandbox/runtimes"
)

// Where functions find things in a sandbox with a root file system of its own.
const (
	TaskRoot   = "/var/task"
	RuntimeDir = "/var/runtime"
	TmpDir     = "/tmp"
	// DefaultPath is PATH as functions see it.
	DefaultPath = "/var/lang/bin:/usr/local/bin:/usr/bin:/bin:/opt/bin"
	// RuntimePort is where the Runtime API listens in a sandbox with a network
	// namespace of its own.
	RuntimePort = 9001
	// TmpParameter is what a virtual machine's kernel is told the size of /tmp
	// as, in MiB.
	TmpParameter = "volley_tmp"
)

// Layout says where things are as the function sees them. The zero Layout is
// that of a sandbox with a root file system of its own.
type Layout struct {
	// TaskRoot is the directory of the code, RuntimeDir that of the runtime
	// clients, TmpDir the place for temporary files.
	TaskRoot, RuntimeDir, TmpDir string
	// Path is the PATH variable.
	Path string
}

func (l Layout) withDefaults() Layout {
	for _, d := range []struct {
		field *string
		value string
	}{{&l.TaskRoot, TaskRoot}, {&l.RuntimeDir, RuntimeDir}, {&l.TmpDir, TmpDir}, {&l.Path, DefaultPath}} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	return l
}

// ImageDefaults is what an image says about how to run it.
type ImageDefaults struct {
	EntryPoint, Command []string
	// Env is NAME=value.
	Env        []string
	WorkingDir string
}

// Command returns what runs a function: Argv, Env, Dir, ARN and InitTimeout of
// a Boot. Its other fields are the caller's. container names the sandbox in
// the log stream's name. image is nil for a function of package type Zip.
//
// The error is a *function.Error: InvalidParameter for a runtime that is not
// known, InvalidImage for an image without a program to run.
func Command(f *function.Function, container string, l Layout, image *ImageDefaults) (Boot, error) {
	l = l.withDefaults()
	boot := Boot{
		Dir:         l.TaskRoot,
		ARN:         function.ARN(f.Name),
		InitTimeout: max(frame.DefaultInitTimeout, f.Timeout),
	}
	env := platformEnv(f, container, l)
	if f.PackageType == function.Image {
		if image == nil {
			return Boot{}, function.Errorf(function.InvalidImage, "function %s: nothing is known about its image", f.Name)
		}
		boot.Argv = imageArgv(f.ImageConfig, image)
		if len(boot.Argv) == 0 {
			return Boot{}, function.Errorf(function.InvalidImage,
				"the image of function %s has neither entry point nor command: set imageConfig.entryPoint", f.Name)
		}
		if dir := firstOf(f.ImageConfig.WorkingDirectory, image.WorkingDir); dir != "" {
			boot.Dir = dir
		} else {
			boot.Dir = "/"
		}
		// What the image says of PATH and the like holds, as it knows itself.
		for _, v := range image.Env {
			if name, value, ok := strings.Cut(v, "="); ok {
				env[name] = value
			}
		}
		if len(f.ImageConfig.Command) > 0 {
			env["_HANDLER"] = f.ImageConfig.Command[0]
		} else if len(image.Command) > 0 {
			env["_HANDLER"] = image.Command[0]
		}
	} else {
		family, ok := function.RuntimeFamily(f.Runtime)
		if !ok {
			return Boot{}, &function.Error{Code: function.InvalidParameter, Field: "runtime",
				Message: fmt.Sprintf("%q is unknown: use one of %s", f.Runtime, strings.Join(function.Runtimes(), ", "))}
		}
		switch family {
		case function.Python:
			boot.Argv = []string{"python3", path.Join(l.RuntimeDir, runtimes.PythonFile)}
		case function.Node:
			boot.Argv = []string{"node", path.Join(l.RuntimeDir, runtimes.NodeFile)}
		case function.Provided:
			boot.Argv = []string{path.Join(l.TaskRoot, "bootstrap")}
		}
		if family != function.Provided {
			env["AWS_EXECUTION_ENV"] = "AWS_Lambda_" + f.Runtime
		}
		env["_HANDLER"] = f.Handler
	}
	maps.Copy(env, f.Environment)
	boot.Env = make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		boot.Env = append(boot.Env, name+"="+env[name])
	}
	return boot, nil
}

// platformEnv is what every function finds in its environment; its own
// variables come on top.
func platformEnv(f *function.Function, container string, l Layout) map[string]string {
	return map[string]string{
		"AWS_DEFAULT_REGION":              function.Region,
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": strconv.Itoa(f.MemoryMB),
		"AWS_LAMBDA_FUNCTION_NAME":        f.Name,
		"AWS_LAMBDA_FUNCTION_VERSION":     function.LatestVersion,
		"AWS_LAMBDA_INITIALIZATION_TYPE":  "on-demand",
		"AWS_LAMBDA_LOG_GROUP_NAME":       "/aws/lambda/" + f.Name,
		"AWS_LAMBDA_LOG_STREAM_NAME":      "[" + function.LatestVersion + "]" + container,
		"AWS_REGION":                      function.Region,
		// A Go program that thinks it has more CPUs than it may use only makes
		// threads wait for each other.
		"GOMAXPROCS":         strconv.Itoa(f.CPUs()),
		"LAMBDA_RUNTIME_DIR": l.RuntimeDir,
		"LAMBDA_TASK_ROOT":   l.TaskRoot,
		"LANG":               "C.UTF-8",
		"LD_LIBRARY_PATH":    l.TaskRoot + ":" + l.TaskRoot + "/lib:/opt/lib",
		"PATH":               l.Path,
		"TMPDIR":             l.TmpDir,
		"TZ":                 ":UTC",
	}
}

// imageArgv puts together entry point and command as container engines do: an
// entry point from the configuration drops the image's own command.
func imageArgv(c function.ImageConfig, image *ImageDefaults) []string {
	entryPoint, command := image.EntryPoint, image.Command
	if len(c.EntryPoint) > 0 {
		entryPoint, command = c.EntryPoint, nil
	}
	if len(c.Command) > 0 {
		command = c.Command
	}
	return slices.Concat(entryPoint, command)
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
