package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/spf13/cobra"
)

type invokeOptions struct {
	clientOptions
	data   string
	tail   bool
	async  bool
	stream bool
}

func newInvokeCommand() *cobra.Command {
	var o invokeOptions
	cmd := &cobra.Command{
		Use:   "invoke NAME",
		Short: "Call a function",
		Long: `Call a function with an event and print what it returns.

The event is JSON: given by --data, read from a file with --data @FILE, or from
standard input with --data -. Without --data it is {}.

With --async the server keeps the event, runs the function later, again if it
fails, and this command prints the request id at once.

Exit statuses: 0 done, 2 wrong usage, 4 the event's file cannot be read or is no
JSON, 6 the server cannot be reached or refuses, 7 the function failed (what it
returned is printed all the same).`,
		Example: `  volley invoke hello -d '{"name": "Ada"}'
  volley invoke hello -d @event.json --tail
  volley invoke hello --async`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.async && (o.stream || o.tail) {
				return usagef("--async gives no result, so neither --stream nor --tail goes with it")
			}
			event, err := readEvent(o.data, cmd.InOrStdin())
			if err != nil {
				return err
			}
			c, err := o.open(cmd.Context())
			if err != nil {
				return err
			}
			if o.stream {
				return invokeStream(cmd.Context(), c, args[0], event, o.tail, cmd.OutOrStdout(), cmd.ErrOrStderr())
			}
			return invoke(cmd.Context(), c, args[0], event, o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.register(cmd)
	f := cmd.Flags()
	f.StringVarP(&o.data, "data", "d", "{}", "the event: JSON, @FILE, or - for standard input")
	f.BoolVar(&o.tail, "tail", false, "print the end of the function's log to standard error")
	f.BoolVar(&o.async, "async", false, "do not wait for the result")
	f.BoolVar(&o.stream, "stream", false, "print the response while it comes")
	return cmd
}

func readEvent(data string, stdin io.Reader) ([]byte, error) {
	event := []byte(data)
	source := "--data"
	switch {
	case data == "-":
		source = "standard input"
		var err error
		if event, err = io.ReadAll(stdin); err != nil {
			return nil, withStatus(exitInput, fmt.Errorf("read the event: %w", err))
		}
	case len(data) > 0 && data[0] == '@':
		source = data[1:]
		var err error
		if event, err = os.ReadFile(source); err != nil {
			return nil, withStatus(exitInput, fmt.Errorf("read the event: %w", err))
		}
	}
	if !json.Valid(event) {
		return nil, withStatus(exitInput, fmt.Errorf("the event in %s is not JSON; a text needs quotes of its own, as in '\"text\"'", source))
	}
	return event, nil
}

func invoke(ctx context.Context, c *client, name string, event []byte, o invokeOptions, stdout, stderr io.Writer) error {
	in := &lambda.InvokeInput{FunctionName: &name, Payload: event}
	if o.async {
		in.InvocationType = types.InvocationTypeEvent
	}
	if o.tail {
		in.LogType = types.LogTypeTail
	}
	out, err := c.Invoke(ctx, in)
	if err != nil {
		return fmt.Errorf("invoke %s: %w", name, c.failed(err))
	}
	if o.async {
		id, _ := requestID(out.ResultMetadata)
		fmt.Fprintf(stdout, "Accepted: request %s\n", id)
		return nil
	}
	printLogTail(stderr, out.LogResult)
	if err := printPayload(stdout, out.Payload); err != nil {
		return err
	}
	if out.FunctionError != nil {
		return withStatus(exitFunction, fmt.Errorf("the function %s failed", name))
	}
	return nil
}

func invokeStream(ctx context.Context, c *client, name string, event []byte, tail bool, stdout, stderr io.Writer) error {
	in := &lambda.InvokeWithResponseStreamInput{FunctionName: &name, Payload: event}
	if tail {
		in.LogType = types.LogTypeTail
	}
	out, err := c.InvokeWithResponseStream(ctx, in)
	if err != nil {
		return fmt.Errorf("invoke %s: %w", name, c.failed(err))
	}
	events := out.GetStream()
	defer events.Close()
	failed := ""
	for e := range events.Events() {
		switch e := e.(type) {
		case *types.InvokeWithResponseStreamResponseEventMemberPayloadChunk:
			if _, err := stdout.Write(e.Value.Payload); err != nil {
				return fmt.Errorf("print the response: %w", err)
			}
		case *types.InvokeWithResponseStreamResponseEventMemberInvokeComplete:
			printLogTail(stderr, e.Value.LogResult)
			if failed = aws.ToString(e.Value.ErrorCode); failed != "" {
				fmt.Fprintf(stderr, "%s: %s\n", failed, aws.ToString(e.Value.ErrorDetails))
			}
		}
	}
	if err := events.Err(); err != nil {
		return fmt.Errorf("invoke %s: %w", name, c.failed(err))
	}
	if failed != "" {
		return withStatus(exitFunction, fmt.Errorf("the function %s failed", name))
	}
	return nil
}

func printPayload(w io.Writer, payload []byte) error {
	if !bytes.HasSuffix(payload, []byte("\n")) {
		payload = append(payload, '\n')
	}
	if _, err := w.Write(payload); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	return nil
}

// printLogTail prints the base64 of a log; what is none is left out.
func printLogTail(w io.Writer, encoded *string) {
	if text, err := base64.StdEncoding.DecodeString(aws.ToString(encoded)); err == nil {
		fmt.Fprintf(w, "%s", text)
	}
}
