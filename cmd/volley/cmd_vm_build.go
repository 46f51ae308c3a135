package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/faasnap/api"
)

type vmBuildOptions struct {
	vmOptions
	vmmOptions
	req           api.BuildRequest
	memory, guest megabytes
	timeout       time.Duration
	env           []string
	json          bool
}

func newVMBuildCommand() *cobra.Command {
	o := vmBuildOptions{memory: 128, guest: 2048}
	cmd := &cobra.Command{
		Use:   "build NAME",
		Short: "Build what a function's virtual machines boot",
		Long: `Build what a function's virtual machines boot: Debian's kernel with an initrd,
and file systems with the runtime and the code, or of a container image. What was
built once is taken from the cache ($VOLLEY_CACHE, else volley in the user's
cache directory). A function of that name is replaced; its snapshots stay as
they are, so record them again.

--from names a directory with the code, --image an image: a reference in a
registry, or an archive (docker save, or an OCI layout as a tar file).

Exit statuses: 0 done, 1 a program that is needed is missing or fails, 2 wrong
usage, 4 the code or image cannot be read, 6 the data directory is in use, 130 interrupted.`,
		Example: `  volley vm build hello --from examples/hello --runtime python3 --handler hello.handler
  volley vm build resize --from resize --runtime python3 --handler app.handler --package python3-pil --memory 512MB
  volley vm build detect --image registry.example/detect:3 --guest-memory 4GB`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.prepare(); err != nil {
				return err
			}
			return o.use(cmd.Context(), needBuilder, &o.vmmOptions, func(c *api.Client) error {
				return o.run(cmd.Context(), c, args[0], cmd.OutOrStdout(), cmd.ErrOrStderr())
			})
		},
	}
	o.vmOptions.register(cmd)
	o.vmmOptions.register(cmd)
	f := cmd.Flags()
	f.StringVar(&o.req.From, "from", "", "directory with the code")
	f.StringVar(&o.req.Image, "image", "", "container image: a reference or an archive")
	f.StringVar(&o.req.Runtime, "runtime", "", "python3, node or provided, or AWS's names for them")
	f.StringVar(&o.req.Handler, "handler", "", "what to call, such as file.function")
	f.StringArrayVar(&o.req.Packages, "package", nil, "Debian package beyond the runtime; may be repeated")
	f.StringArrayVar(&o.env, "env", nil, "environment variable KEY=VALUE; may be repeated")
	f.Var(&o.memory, "memory", "the function's memory, by which it gets processors")
	f.Var(&o.guest, "guest-memory", "memory of its virtual machines")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "time limit of an invocation")
	f.BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

// prepare makes a request of the flags.
func (o *vmBuildOptions) prepare() error {
	if (o.req.From == "") == (o.req.Image == "") {
		return usagef("the code must come from one place: --from or --image")
	}
	if o.timeout%time.Second != 0 || o.timeout <= 0 {
		return usagef("--timeout %s: must be whole seconds", o.timeout)
	}
	for _, kv := range o.env {
		key, value, ok := strings.Cut(kv, "=")
		if !ok || key == "" {
			return usagef("--env %q is not KEY=VALUE", kv)
		}
		if o.req.Environment == nil {
			o.req.Environment = map[string]string{}
		}
		o.req.Environment[key] = value
	}
	o.req.MemoryMB, o.req.GuestMemoryMB, o.req.TimeoutSeconds = int(o.memory), int(o.guest), int(o.timeout/time.Second)
	// A daemon's working directory is another one.
	if o.req.From != "" {
		from, err := relativeToHost(o.req.From)
		o.req.From = from
		return err
	}
	if _, err := os.Stat(o.req.Image); err == nil {
		if o.req.Image, err = filepath.Abs(o.req.Image); err != nil {
			return withStatus(exitInput, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return withStatus(exitInput, fmt.Errorf("read image: %w", err))
	}
	return nil
}

func (o *vmBuildOptions) run(ctx context.Context, c *api.Client, name string, stdout, stderr io.Writer) error {
	begin := time.Now()
	s := newSteps(stderr)
	e, err := c.Long(ctx, http.MethodPut, "/v1/functions/"+pathName(name), o.req, s.show)
	s.close()
	if err != nil {
		return err
	}
	if o.json {
		return writeJSON(stdout, e.Function)
	}
	what := "code in " + o.req.From
	if o.req.Image != "" {
		what = "image " + o.req.Image
	}
	fmt.Fprintf(stdout, "Built %s of %s in %s.\n", name, what, shortDuration(time.Since(begin)))
	return nil
}
