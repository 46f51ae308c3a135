package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/smithy-go/middleware"
	"github.com/spf13/cobra"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox/bundle"
)

type deployOptions struct {
	clientOptions
	image       string
	zip         string
	runtime     string
	handler     string
	memory      megabytes
	tmp         megabytes
	timeout     time.Duration
	env         []string
	description string
	network     string
	reserved    int
	provisioned int
	retries     int
	onFailure   string
	json        bool
}

func newDeployCommand() *cobra.Command {
	o := deployOptions{memory: 128, tmp: 512, reserved: -1, provisioned: -1, retries: -1}
	cmd := &cobra.Command{
		Use:   "deploy NAME [DIR]",
		Short: "Create or change a function",
		Long: `Create a function on a server, or change the one of that name.

Its code is a directory, a zip file (--zip), or a container image (--image):
a reference in a registry, or a file that "docker save" or "skopeo copy" wrote,
or a directory in the OCI layout. Code and images written for AWS Lambda run as
they are.

Without --runtime it is guessed from the files: an executable called bootstrap
is "provided" (any language: Go, Rust, a shell script), *.py is "python3", *.mjs,
*.cjs and *.js are "node". Without --handler it is the function "handler" (or
"lambda_handler") of the one file, or of index, main, app, handler or
lambda_function.

Exit statuses: 0 done, 2 wrong usage, 4 the code cannot be read or has no
recognisable entry point, 6 the server cannot be reached or refuses.`,
		Example: `  volley deploy hello ./hello                       a directory with hello.py
  volley deploy hello ./hello --memory 256MB --timeout 1m --env TOKEN=abc
  volley deploy resize --zip resize.zip --runtime node --handler index.handler
  volley deploy detect --image registry.example/detect:3 --memory 1GB`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := ""
			if len(args) == 2 {
				dir = args[1]
			}
			return deploy(cmd.Context(), args[0], dir, o, cmd.OutOrStdout())
		},
	}
	o.register(cmd)
	f := cmd.Flags()
	f.StringVar(&o.image, "image", "", "container image: a reference, an archive or an OCI layout")
	f.StringVar(&o.zip, "zip", "", "zip file with the code")
	f.StringVar(&o.runtime, "runtime", "", "python3, node or provided, or AWS's names for them")
	f.StringVar(&o.handler, "handler", "", "what to call, such as file.function")
	f.Var(&o.memory, "memory", "memory limit, also what is reserved on a node")
	f.Var(&o.tmp, "tmp", "size limit of /tmp")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "time limit of an invocation")
	f.StringArrayVar(&o.env, "env", nil, "environment variable KEY=VALUE; may be repeated")
	f.StringVar(&o.description, "description", "", "a sentence about it")
	f.StringVar(&o.network, "network", "none", "what it can reach: none; net:NAME, a network declared by volley net up; or host, where the server allows that")
	f.IntVar(&o.reserved, "concurrency", -1, "most invocations at once (default: no limit of its own)")
	f.IntVar(&o.provisioned, "provisioned", -1, "containers that are kept ready (default: none)")
	f.IntVar(&o.retries, "retries", -1, "how often a failed asynchronous invocation is run again: 0 to 2 (default 2)")
	f.StringVar(&o.onFailure, "on-failure", "", "function that gets what failed for good")
	f.BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func deploy(ctx context.Context, name, dir string, o deployOptions, w io.Writer) error {
	sources := 0
	for _, s := range []string{dir, o.image, o.zip} {
		if s != "" {
			sources++
		}
	}
	if sources != 1 {
		return usagef("the code must come from one place: DIR, --zip or --image")
	}
	env := map[string]string{}
	for _, kv := range o.env {
		key, value, ok := strings.Cut(kv, "=")
		if !ok || key == "" {
			return usagef("--env %q is not KEY=VALUE", kv)
		}
		env[key] = value
	}
	if o.timeout%time.Second != 0 || o.timeout <= 0 {
		return usagef("--timeout %s: must be whole seconds", o.timeout)
	}
	if !function.Network(o.network).Valid() {
		return usagef("--network %q: must be none, host, or net: and the name of a network, as in net:job1", o.network)
	}
	c, err := o.open(ctx)
	if err != nil {
		return err
	}
	d := deployment{client: c, name: name, env: env, o: o}
	if err := d.loadCode(ctx, dir); err != nil {
		return err
	}
	started := time.Now()
	verb, err := d.createOrUpdate(ctx)
	if err != nil {
		return fmt.Errorf("deploy %s: %w", name, c.failed(err))
	}
	if err := d.configure(ctx); err != nil {
		return fmt.Errorf("deploy %s: %w", name, c.failed(err))
	}
	if o.json {
		out, err := c.GetFunctionConfiguration(ctx, &lambda.GetFunctionConfigurationInput{FunctionName: &name})
		if err != nil {
			return fmt.Errorf("deploy %s: %w", name, c.failed(err))
		}
		out.ResultMetadata = middleware.Metadata{}
		return writeJSON(w, out)
	}
	what := "image " + o.image
	if d.zip != nil {
		what = fmt.Sprintf("%s, runtime %s", byteCount(int64(len(d.zip))), d.runtime)
		if d.handler != "" {
			what += ", handler " + d.handler
		}
	}
	fmt.Fprintf(w, "%s %s in %s (%s).\nCall it: volley invoke %s\n", verb, name, shortDuration(time.Since(started)), what, name)
	return nil
}

// deployment is one function on its way to the server.
type deployment struct {
	client           *client
	name             string
	env              map[string]string
	o                deployOptions
	zip              []byte
	runtime, handler string
	// imageURI names an image in a registry; upload is one that was sent.
	imageURI string
	upload   struct{ Bucket, Key string }
}

func (d *deployment) loadCode(ctx context.Context, dir string) error {
	d.runtime, d.handler = d.o.runtime, d.o.handler
	var err error
	switch {
	case d.o.image != "":
		if d.runtime != "" || d.handler != "" {
			return usagef("--runtime and --handler are for code in a directory or zip file; an image says itself what to run")
		}
		return d.loadImage(ctx)
	case d.o.zip != "":
		if d.zip, err = os.ReadFile(d.o.zip); err != nil {
			return withStatus(exitInput, fmt.Errorf("read the code: %w", err))
		}
		if d.runtime == "" {
			return usagef("--zip needs --runtime (python3, node or provided)")
		}
		return nil
	}
	var zipped bytes.Buffer
	if err := bundle.Pack(&zipped, dir, bundle.Limits{}); err != nil {
		return withStatus(exitInput, err)
	}
	d.zip = zipped.Bytes()
	return d.guess(dir)
}

// guess fills in runtime and handler from the files of a directory.
func (d *deployment) guess(dir string) error {
	if d.runtime == "" {
		d.runtime = guessRuntime(dir)
	}
	if d.runtime == "" {
		return withStatus(exitInput, fmt.Errorf("%s has neither a bootstrap nor *.py, *.mjs, *.cjs or *.js: say --runtime and --handler", dir))
	}
	family, ok := function.RuntimeFamily(d.runtime)
	if !ok || d.handler != "" || family == function.Provided {
		return nil
	}
	if d.handler = guessHandler(dir, family); d.handler == "" {
		return withStatus(exitInput, fmt.Errorf("it is not clear which function of %s to call: say --handler, such as main.handler", dir))
	}
	return nil
}

func guessRuntime(dir string) string {
	if _, err := os.Stat(filepath.Join(dir, "bootstrap")); err == nil {
		return "provided"
	}
	if len(sources(dir, ".py")) > 0 {
		return "python3"
	}
	if len(sources(dir, ".mjs", ".cjs", ".js")) > 0 {
		return "node"
	}
	return ""
}

// guessHandler looks for the file with the handler: the only one, or the one
// with a usual name; and in it for the usual names of functions.
func guessHandler(dir string, family function.Family) string {
	extensions := []string{".py"}
	if family == function.Node {
		extensions = []string{".mjs", ".cjs", ".js"}
	}
	files := sources(dir, extensions...)
	if len(files) > 1 {
		usual := []string{"index", "main", "app", "handler", "lambda_function"}
		files = slices.DeleteFunc(files, func(f string) bool {
			return !slices.Contains(usual, strings.TrimSuffix(f, filepath.Ext(f)))
		})
	}
	if len(files) != 1 {
		return ""
	}
	module := strings.TrimSuffix(files[0], filepath.Ext(files[0]))
	text, err := os.ReadFile(filepath.Join(dir, files[0]))
	if err != nil {
		return ""
	}
	if strings.Contains(string(text), "lambda_handler") {
		return module + ".lambda_handler"
	}
	return module + ".handler"
}

// sources names the files with these extensions at the top of a directory.
func sources(dir string, extensions ...string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() && slices.Contains(extensions, filepath.Ext(e.Name())) {
			names = append(names, e.Name())
		}
	}
	return names
}

// createOrUpdate makes the function, or brings it to what was asked for.
func (d *deployment) createOrUpdate(ctx context.Context) (verb string, err error) {
	_, err = d.client.GetFunctionConfiguration(ctx, &lambda.GetFunctionConfigurationInput{FunctionName: &d.name})
	if _, missing := errors.AsType[*types.ResourceNotFoundException](err); missing {
		return "Created", d.create(ctx)
	}
	if err != nil {
		return "", err
	}
	return "Updated", d.update(ctx)
}

func (d *deployment) create(ctx context.Context) error {
	in := &lambda.CreateFunctionInput{
		FunctionName: &d.name,
		Code:         &types.FunctionCode{ZipFile: d.zip},
		// AWS clients insist on a role; Volley has none.
		Role:             aws.String("arn:aws:iam::000000000000:role/none"),
		Description:      &d.o.description,
		MemorySize:       aws.Int32(int32(d.o.memory)),
		Timeout:          aws.Int32(int32(d.o.timeout / time.Second)),
		EphemeralStorage: &types.EphemeralStorage{Size: aws.Int32(int32(d.o.tmp))},
		Environment:      &types.Environment{Variables: d.env},
		Tags:             map[string]string{function.NetworkTag: d.o.network},
	}
	if d.zip == nil {
		in.PackageType = types.PackageTypeImage
		in.Code.ImageUri, in.Code.S3Bucket, in.Code.S3Key = d.imageSource()
	} else {
		in.Runtime = types.Runtime(d.runtime)
		in.Handler = &d.handler
	}
	_, err := d.client.CreateFunction(ctx, in)
	return err
}

// imageSource is where the image is, in the API's words.
func (d *deployment) imageSource() (uri, bucket, key *string) {
	if d.imageURI != "" {
		return &d.imageURI, nil, nil
	}
	return nil, &d.upload.Bucket, &d.upload.Key
}

func (d *deployment) update(ctx context.Context) error {
	code := &lambda.UpdateFunctionCodeInput{FunctionName: &d.name, ZipFile: d.zip}
	if d.zip == nil {
		code.ImageUri, code.S3Bucket, code.S3Key = d.imageSource()
	}
	changed, err := d.client.UpdateFunctionCode(ctx, code)
	if err != nil {
		return err
	}
	configuration := &lambda.UpdateFunctionConfigurationInput{
		FunctionName:     &d.name,
		Description:      &d.o.description,
		MemorySize:       aws.Int32(int32(d.o.memory)),
		Timeout:          aws.Int32(int32(d.o.timeout / time.Second)),
		EphemeralStorage: &types.EphemeralStorage{Size: aws.Int32(int32(d.o.tmp))},
		Environment:      &types.Environment{Variables: d.env},
	}
	if d.zip != nil {
		configuration.Runtime = types.Runtime(d.runtime)
		configuration.Handler = &d.handler
	}
	if _, err := d.client.UpdateFunctionConfiguration(ctx, configuration); err != nil {
		return err
	}
	_, err = d.client.TagResource(ctx, &lambda.TagResourceInput{Resource: changed.FunctionArn, Tags: map[string]string{function.NetworkTag: d.o.network}})
	return err
}

// configure sets what the API has calls of its own for. What was not asked for
// is set back to its default.
func (d *deployment) configure(ctx context.Context) error {
	latest := aws.String(function.LatestVersion)
	var err error
	if d.o.reserved >= 0 {
		_, err = d.client.PutFunctionConcurrency(ctx, &lambda.PutFunctionConcurrencyInput{
			FunctionName: &d.name, ReservedConcurrentExecutions: aws.Int32(int32(d.o.reserved))})
	} else {
		_, err = d.client.DeleteFunctionConcurrency(ctx, &lambda.DeleteFunctionConcurrencyInput{FunctionName: &d.name})
	}
	if err != nil {
		return err
	}
	if d.o.provisioned > 0 {
		_, err = d.client.PutProvisionedConcurrencyConfig(ctx, &lambda.PutProvisionedConcurrencyConfigInput{
			FunctionName: &d.name, Qualifier: latest, ProvisionedConcurrentExecutions: aws.Int32(int32(d.o.provisioned))})
	} else {
		_, err = d.client.DeleteProvisionedConcurrencyConfig(ctx, &lambda.DeleteProvisionedConcurrencyConfigInput{
			FunctionName: &d.name, Qualifier: latest})
	}
	if err != nil {
		return err
	}
	if d.o.retries < 0 && d.o.onFailure == "" {
		_, err = d.client.DeleteFunctionEventInvokeConfig(ctx, &lambda.DeleteFunctionEventInvokeConfigInput{FunctionName: &d.name})
		if _, none := errors.AsType[*types.ResourceNotFoundException](err); none {
			return nil
		}
		return err
	}
	in := &lambda.PutFunctionEventInvokeConfigInput{FunctionName: &d.name}
	if d.o.retries >= 0 {
		in.MaximumRetryAttempts = aws.Int32(int32(d.o.retries))
	}
	if d.o.onFailure != "" {
		arn := function.ARN(d.o.onFailure)
		in.DestinationConfig = &types.DestinationConfig{OnFailure: &types.OnFailure{Destination: &arn}}
	}
	_, err = d.client.PutFunctionEventInvokeConfig(ctx, in)
	return err
}

// requestID is the id that the server gave a call.
func requestID(m middleware.Metadata) (string, bool) { return awsmiddleware.GetRequestIDMetadata(m) }
