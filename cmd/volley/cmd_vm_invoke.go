package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/volley-run/volley/faasnap"
	"github.com/volley-run/volley/faasnap/api"
)

func modeList() string {
	var names []string
	for _, m := range faasnap.Modes() {
		names = append(names, string(m))
	}
	return strings.Join(names, ", ")
}

type vmInvokeOptions struct {
	vmOptions
	vmmOptions
	data, mode, snapshot string
	network              networkOptions
	hugeZeros, populate  bool
	tail, times, json    bool
}

func newVMInvokeCommand() *cobra.Command {
	var o vmInvokeOptions
	cmd := &cobra.Command{
		Use:   "invoke FUNCTION|ID",
		Short: "Call a function in a virtual machine",
		Long: `Call a function with an event and print what it returns. With a function's name
a machine is restored from its snapshot, or booted if it has none, and ended
afterwards; with the id of a daemon's machine that one is used.

The event is JSON: given by --data, read from a file with --data @FILE, or from
standard input with --data -. Without --data it is {}.

Modes: ` + modeList() + `.

Exit statuses: 0 done, 2 wrong usage, 4 the event cannot be read, there is no such
function, or the snapshot is damaged, 6 the machine is busy, 7 the function failed
(what it returned is printed all the same), 130 interrupted.`,
		Example: `  volley vm invoke hello -d '{"name": "Ada"}' --times
  volley vm invoke hello -d @event.json --mode full
  volley vm invoke 6f1c0f0d-6c3e-4d7c-9a53-0fd3a2b1c9de`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			event, err := readEvent(o.data, cmd.InOrStdin())
			if err != nil {
				return err
			}
			path, how, err := o.target(args[0])
			if err != nil {
				return err
			}
			return o.use(cmd.Context(), needVMM, how, func(c *api.Client) error {
				return o.run(cmd.Context(), c, args[0], path, event, cmd.OutOrStdout(), cmd.ErrOrStderr())
			})
		},
	}
	o.vmOptions.register(cmd)
	o.vmmOptions.register(cmd)
	o.network.registerWithoutMAC(cmd)
	f := cmd.Flags()
	f.StringVarP(&o.data, "data", "d", "{}", "the event: JSON, @FILE, or - for standard input")
	f.StringVar(&o.mode, "mode", "", "how the machine comes about (default: faasnap, or boot without a snapshot)")
	f.StringVar(&o.snapshot, "snapshot", "", "the snapshot (default: the one with the function's name)")
	f.BoolVar(&o.hugeZeros, "huge-zeros", false, "back long zero regions by huge pages")
	f.BoolVar(&o.populate, "populate", false, "put the loading set into the page tables as it arrives")
	f.BoolVar(&o.tail, "tail", false, "print the end of the function's log to standard error")
	f.BoolVar(&o.times, "times", false, "print times and page faults to standard error")
	f.BoolVar(&o.json, "json", false, "print JSON: what was returned, with times and page faults")
	return cmd
}

// target returns the path of the API to call; how is nil if it has to be a
// daemon's.
func (o *vmInvokeOptions) target(name string) (path string, how *vmmOptions, err error) {
	q := url.Values{}
	if o.tail {
		q.Set("log", "tail")
	}
	if _, err := uuid.Parse(name); err == nil {
		if o.mode != "" || o.snapshot != "" || o.hugeZeros || o.populate || o.network != (networkOptions{}) {
			return "", nil, usagef("--mode, --snapshot, --huge-zeros, --populate, --tap, --netns and --net are for functions, not for a machine that runs")
		}
		return "/v1/vms/" + name + "/invocations?" + q.Encode(), nil, nil
	}
	if o.mode != "" {
		if _, err := faasnap.ParseMode(o.mode); err != nil {
			return "", nil, usagef("--mode: %w", err)
		}
		q.Set("mode", o.mode)
	}
	for name, value := range map[string]string{"snapshot": o.snapshot, "tap": o.network.Tap, "namespace": o.network.Namespace, "job": o.network.Job} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if o.hugeZeros {
		q.Set("hugeZeros", "true")
	}
	if o.populate {
		q.Set("populate", "true")
	}
	return "/v1/functions/" + pathName(name) + "/invocations?" + q.Encode(), &o.vmmOptions, nil
}

func (o *vmInvokeOptions) run(ctx context.Context, c *api.Client, name, path string, event []byte, stdout, stderr io.Writer) error {
	s := newSteps(stderr)
	s.show("invoke")
	in, err := c.Invoke(ctx, path, event)
	s.close()
	if err != nil {
		return err
	}
	if _, err := stderr.Write(in.Log); err != nil {
		return fmt.Errorf("print the log: %w", err)
	}
	if o.times {
		fetched := ""
		if in.FetchedBytes > 0 {
			fetched = fmt.Sprintf(", %s fetched", byteCount(in.FetchedBytes))
		}
		fmt.Fprintf(stderr, "%s: start %s, function %s, total %s; page faults: %d major, %d minor; %s in use%s\n",
			in.Mode, in.Start.Round(100*time.Microsecond), in.Run.Round(100*time.Microsecond), in.Total.Round(100*time.Microsecond),
			in.Host.MajorFaults, in.Host.MinorFaults, byteCount(in.Host.ResidentBytes), fetched)
	}
	if o.json {
		err = writeJSON(stdout, map[string]any{
			"payload": json.RawMessage(in.Payload), "functionError": in.FunctionError, "requestId": in.RequestID, "mode": in.Mode,
			"startMs": in.Start.Seconds() * 1000, "runMs": in.Run.Seconds() * 1000, "totalMs": in.Total.Seconds() * 1000,
			"majorFaults": in.Host.MajorFaults, "minorFaults": in.Host.MinorFaults, "residentBytes": in.Host.ResidentBytes, "fetchedBytes": in.FetchedBytes,
		})
	} else {
		err = printPayload(stdout, in.Payload)
	}
	if err != nil {
		return err
	}
	if in.FunctionError != "" {
		return withStatus(exitFunction, fmt.Errorf("the function %s failed", name))
	}
	return nil
}
