package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/gateway/player"
	"github.com/volley-run/volley/sprocket"
	"github.com/volley-run/volley/sprocket/coordinator"
	"github.com/volley-run/volley/sprocket/delivery"
	"github.com/volley-run/volley/sprocket/job"
	"github.com/volley-run/volley/sprocket/media"
	"github.com/volley-run/volley/sprocket/stage"
)

// Exit statuses, as `volley help exit-status` lists them.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitSpec        = 3
	exitInput       = 4
	exitOutput      = 5
	exitPlatform    = 6
	exitFunction    = 7
	exitInterrupted = 130
)

const exitStatusText = `Every volley command ends with one of these statuses:

  0    done
  1    failed for another reason than those below
  2    wrong usage: an unknown command or flag, a missing or bad argument
  3    a pipespec is not valid, or ffmpeg refuses a stage's settings
  4    an input is missing, damaged, without video, or not reachable; or the
       code of a function, an event or a trace cannot be read; there is no such
       network on this node; or a snapshot is missing or damaged
  5    the output cannot be written: disk full, no permission, already there
  6    the function platform, or the daemon of virtual machines, cannot be
       reached, or refuses what was asked
  7    a function failed: what it returned is printed
  130  interrupted by Ctrl-C (or SIGTERM); "volley run --resume" can go on

"volley net exec" ends with the status of the program that it runs, or with 126
or 127 if that cannot be started.
`

// usageError is a wrong way to call a command.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// statusError is an error that decides on the exit status.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

func withStatus(status int, err error) error { return &statusError{status, err} }

// programEnded says that a program that this one stood for ended with a status
// other than 0. There is nothing to add to what it printed.
type programEnded struct{ status int }

func (e *programEnded) Error() string { return fmt.Sprintf("it ended with status %d", e.status) }

// execute runs the command line and returns the exit status.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	code := exitStatus(ctx, err)
	var ended *programEnded
	if errors.As(err, &ended) {
		return ended.status
	}
	if code == exitInterrupted {
		fmt.Fprintln(stderr, "volley: interrupted")
		return code
	}
	fmt.Fprintf(stderr, "volley: %v\n", err)
	if te := coordinator.AsTaskError(err); te != nil && len(te.LogTail) > 0 {
		fmt.Fprintf(stderr, "The end of the worker's log:\n  %s\n", strings.Join(te.LogTail, "\n  "))
	}
	var usage *usageError
	if errors.As(err, &usage) {
		fmt.Fprintln(stderr, `Run "volley --help", or --help after a command, for how to call it.`)
	}
	return code
}

func exitStatus(ctx context.Context, err error) int {
	var (
		usage  *usageError
		spec   *sprocket.SpecError
		input  *media.InputError
		output *job.OutputError
		status *statusError
	)
	te := coordinator.AsTaskError(err)
	switch {
	case errors.As(err, &output):
		return exitOutput
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &status):
		return status.status
	case errors.As(err, &spec):
		return exitSpec
	case errors.As(err, &input), errors.Is(err, player.ErrNoResult):
		return exitInput
	case te != nil && te.Kind == stage.FailureInput:
		return exitInput
	case te != nil && te.Kind == stage.FailureConfig:
		return exitSpec
	case ctx.Err() != nil:
		return exitInterrupted
	}
	return exitFailure
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "volley",
		Short: "Serverless functions and video pipelines on your own machines",
		Long: `Volley runs jobs as bursts of short tasks on parallel workers.

Its video framework, Sprocket, cuts a video into chunks, works on them side by
side, and publishes the result so that it can be watched while the rest is
still being made.

Its function platform, Sophon, runs functions written for AWS Lambda, with its
API, on one machine or many, and places them where they start fastest.

Its virtual machines, FaaSnap, are restored from snapshots almost as fast as
memory is.

Its networks, Particle, give all functions of a job their own addresses at once.`,
		Example: `  volley run grayscale in.mp4 -o out        run a video pipeline
  volley serve out                          watch the result in a browser

  volley server                             start a function platform
  volley deploy hello examples/hello        put a function on it
  volley invoke hello -d '{"name":"Ada"}'   call it

  volley vm build hello --from examples/hello --runtime python3 --handler hello.handler
  volley snapshot record hello              make a snapshot of its virtual machine
  volley vm invoke hello                    restore it and call it

  volley net up --name job1 --prefix 10.77.0.0/16 --endpoints 1000`,
		Version:       version(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%s: %w", cmd.CommandPath(), err)
	})
	const video, functions, platform, machines, networks = "video", "functions", "platform", "machines", "networks"
	root.AddGroup(&cobra.Group{ID: video, Title: "Video pipelines (Sprocket):"},
		&cobra.Group{ID: functions, Title: "Functions:"},
		&cobra.Group{ID: platform, Title: "The function platform (Sophon):"},
		&cobra.Group{ID: machines, Title: "Virtual machines (FaaSnap):"},
		&cobra.Group{ID: networks, Title: "Networks for jobs (Particle):"})
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(video, newRunCommand(), newPipelinesCommand(), newValidateCommand(), newGraphCommand(), newServeCommand())
	add(functions, newDeployCommand(), newInvokeCommand(), newFunctionsCommand(), newLogsCommand(), newRecordsCommand(), newDeleteCommand())
	add(platform, newServerCommand(), newControllerCommand(), newInvokerCommand(), newNATSCommand(), newNodesCommand(), newPsCommand(), newSimCommand())
	add(machines, newVMCommand(), newSnapshotCommand())
	add(networks, newNetCommand())
	root.AddCommand(newBenchCommand(), newWorkerCommand(),
		&cobra.Command{Use: "exit-status", Short: "What the exit statuses mean", Long: exitStatusText})
	for _, c := range root.Commands() {
		wrapArgs(c)
	}
	root.Args = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usagef("unknown command %q%s", args[0], suggestion(root, args[0]))
		}
		return nil
	}
	return root
}

// wrapArgs makes complaints about arguments usage errors.
func wrapArgs(c *cobra.Command) {
	check := c.Args
	if check != nil {
		c.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usagef("%s: %w", cmd.CommandPath(), err)
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
}

func suggestion(root *cobra.Command, word string) string {
	// What is nearest is enough.
	for root.SuggestionsMinimumDistance = 1; root.SuggestionsMinimumDistance <= 2; root.SuggestionsMinimumDistance++ {
		if names := root.SuggestionsFor(word); len(names) > 0 {
			return fmt.Sprintf("; did you mean %s?", strings.Join(names, ", "))
		}
	}
	return ""
}

// catalog is what pipelines can be made of.
func catalog() *sprocket.Catalog {
	c := stage.Catalog(delivery.Names())
	c.CheckDelivery = func(name string, streams int) error {
		_, err := delivery.New(name, streams, delivery.Options{FramesPerTask: 1})
		return err
	}
	return c
}
