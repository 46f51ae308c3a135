package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/smithy-go"
	"github.com/spf13/cobra"
)

const (
	// defaultAPIAddress is where a server listens and a client looks for it.
	defaultAPIAddress = "127.0.0.1:9400"
	// platformRegion is the region in signatures; any is accepted.
	platformRegion = "us-east-1"
	// envHome and envEndpoint are environment variables.
	envHome     = "VOLLEY_HOME"
	envEndpoint = "VOLLEY_ENDPOINT"
)

// homeDir is where a server keeps its data and clients find its keys.
func homeDir() (string, error) {
	if dir := os.Getenv(envHome); dir != "" {
		return dir, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find the home directory: %w; set %s", err, envHome)
	}
	return filepath.Join(home, ".volley"), nil
}

// clientOptions say where the platform is and who asks.
type clientOptions struct {
	endpoint    string
	credentials string
	profile     string
}

func (o *clientOptions) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.endpoint, "endpoint", "", "the server's address (default: $"+envEndpoint+", else http://"+defaultAPIAddress+")")
	f.StringVar(&o.credentials, "credentials", "", "file with the keys, in AWS's format (default: $"+envHome+"/credentials, else ~/.volley/credentials, else what AWS tools would use)")
	f.StringVar(&o.profile, "profile", "", "which keys of the file (default: default)")
}

// client talks to a server: by the Lambda API, and by Volley's own for what
// that lacks.
type client struct {
	*lambda.Client
	endpoint    string
	credentials aws.CredentialsProvider
	http        *http.Client
}

func (o *clientOptions) open(ctx context.Context) (*client, error) {
	endpoint := o.endpoint
	if endpoint == "" {
		endpoint = os.Getenv(envEndpoint)
	}
	if endpoint == "" {
		endpoint = "http://" + defaultAPIAddress
	}
	if !strings.Contains(endpoint, "://") {
		endpoint = "http://" + endpoint
	}
	if u, err := url.Parse(endpoint); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, usagef("--endpoint %q is not an address such as http://%s", endpoint, defaultAPIAddress)
	}
	// No server's keys are in a cloud's metadata.
	load := []func(*config.LoadOptions) error{config.WithRegion(platformRegion), config.WithEC2IMDSClientEnableState(imds.ClientDisabled)}
	if o.profile != "" {
		load = append(load, config.WithSharedConfigProfile(o.profile))
	}
	file, err := o.credentialsFile()
	if err != nil {
		return nil, err
	}
	if file != "" {
		load = append(load, config.WithSharedCredentialsFiles([]string{file}), config.WithSharedConfigFiles(nil))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, usagef("read the keys: %w; name their file with --credentials", err)
	}
	if file != "" {
		// Keys for the cloud in the environment are not for this server.
		shared, err := config.LoadSharedConfigProfile(ctx, profileOr(o.profile), func(l *config.LoadSharedConfigOptions) {
			l.CredentialsFiles, l.ConfigFiles = []string{file}, []string{}
		})
		if err != nil {
			return nil, usagef("read the keys in %s: %w; name another file with --credentials or other keys in it with --profile", file, err)
		}
		keys := shared.Credentials
		cfg.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return keys, nil })
	}
	if _, err := cfg.Credentials.Retrieve(ctx); err != nil {
		return nil, withStatus(exitPlatform, fmt.Errorf("there are no keys to sign with: a server on this machine keeps them in credentials in its data directory, which $%s names; name another file with --credentials", envHome))
	}
	// Lambda's longest invocation is 15 minutes; the context ends calls earlier.
	httpClient := &http.Client{Transport: &http.Transport{
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, MaxIdleConnsPerHost: 16,
	}}
	api := lambda.NewFromConfig(cfg, func(l *lambda.Options) {
		l.BaseEndpoint = aws.String(strings.TrimSuffix(endpoint, "/"))
		l.HTTPClient = httpClient
		l.RetryMaxAttempts = 1
	})
	return &client{Client: api, endpoint: strings.TrimSuffix(endpoint, "/"), credentials: cfg.Credentials, http: httpClient}, nil
}

func profileOr(name string) string {
	if name == "" {
		return config.DefaultSharedConfigProfile
	}
	return name
}

// credentialsFile is the file to read keys from; empty leaves it to AWS's rules.
func (o *clientOptions) credentialsFile() (string, error) {
	if o.credentials != "" {
		if _, err := os.Stat(o.credentials); err != nil {
			return "", usagef("--credentials: %w", err)
		}
		return o.credentials, nil
	}
	home, err := homeDir()
	if err != nil {
		return "", err
	}
	file := filepath.Join(home, "credentials")
	if _, err := os.Stat(file); err != nil {
		return "", nil //nolint:nilerr // no such file: the keys come from elsewhere
	}
	return file, nil
}

// get asks Volley's own API and decodes the answer into out.
func (c *client) get(ctx context.Context, path string, query url.Values, out any) error {
	resp, err := c.do(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return c.failed(fmt.Errorf("read the answer to %s: %w", path, err))
	}
	return nil
}

// do sends a signed request to Volley's own API. The caller closes the body.
func (c *client) do(ctx context.Context, method, path string, query url.Values, body []byte) (*http.Response, error) {
	sum := sha256.Sum256(body)
	return c.send(ctx, method, path, query, bytes.NewReader(body), hex.EncodeToString(sum[:]))
}

// send is do with a body that is read once, and the word that the signature
// has for it.
func (c *client) send(ctx context.Context, method, path string, query url.Values, body io.Reader, digest string) (*http.Response, error) {
	address := c.endpoint + path
	if len(query) > 0 {
		address += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return nil, c.failed(err)
	}
	keys, err := c.credentials.Retrieve(ctx)
	if err != nil {
		return nil, c.failed(fmt.Errorf("find keys: %w", err))
	}
	req.Header.Set("X-Amz-Content-Sha256", digest)
	if err := v4.NewSigner().SignHTTP(ctx, keys, req, digest, "lambda", platformRegion, time.Now()); err != nil {
		return nil, c.failed(fmt.Errorf("sign request: %w", err))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.failed(err)
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		var answer struct{ Message string }
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		if json.Unmarshal(text, &answer) != nil || answer.Message == "" {
			answer.Message = strings.TrimSpace(string(text))
		}
		return nil, c.failed(fmt.Errorf("%s (HTTP status %d)", answer.Message, resp.StatusCode))
	}
	return resp, nil
}

// failed says what a user can do about a failed call.
func (c *client) failed(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		message := api.ErrorMessage()
		switch api.ErrorCode() {
		case "UnrecognizedClientException", "InvalidSignatureException", "MissingAuthenticationTokenException":
			message = api.ErrorCode() + ": " + message + "; name the file with the server's keys by --credentials"
		}
		return withStatus(exitPlatform, errors.New(message))
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return withStatus(exitPlatform, fmt.Errorf(`no server answers at %s (%w): start one with "volley server", or name another with --endpoint`, c.endpoint, op.Err))
	}
	return withStatus(exitPlatform, err)
}
