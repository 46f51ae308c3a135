// Package lambdasuite holds the tests that a server of the AWS Lambda API has
// to pass: the AWS CLI, boto3 and the AWS SDK for Go work with a function on it.
// The function is testdata/lambda/index.py of package e2e, in Python 3.
package lambdasuite

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volley-run/volley/internal/testenv"
)

// scriptTime bounds one script; on an idle machine it takes half a minute.
const scriptTime = 5 * time.Minute

// Server is where the API is, and a pair of keys that it accepts.
type Server struct {
	Endpoint             string // such as "http://127.0.0.1:9400"
	AccessKey, SecretKey string
}

// AWSCLI runs the script that uses the AWS CLI. It needs testenv.AWSCLI.
func AWSCLI(t *testing.T, s Server) {
	t.Helper()
	script(t, s, "bash", "awscli.sh")
}

// Boto3 runs the script that uses boto3. It needs testenv.Boto3.
func Boto3(t *testing.T, s Server) {
	t.Helper()
	python, err := testenv.Boto3Python()
	if err != nil {
		t.Fatal(err)
	}
	script(t, s, python, "boto3_client.py")
}

func script(t *testing.T, s Server, interpreter, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), scriptTime)
	defer cancel()
	path := filepath.Join(testdata(t), name)
	for _, file := range []string{path, functionFile(t)} { // so that go test knows what its result depends on
		if _, err := os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(ctx, interpreter, path, "--endpoint-url", s.Endpoint)
	cmd.WaitDelay = 10 * time.Second
	for _, entry := range os.Environ() {
		// Neither the user's configuration nor a proxy plays a part.
		if name, _, _ := strings.Cut(entry, "="); !strings.HasPrefix(name, "AWS_") && !strings.HasSuffix(strings.ToLower(name), "_proxy") {
			cmd.Env = append(cmd.Env, entry)
		}
	}
	none := filepath.Join(t.TempDir(), "none")
	cmd.Env = append(cmd.Env, "AWS_ACCESS_KEY_ID="+s.AccessKey, "AWS_SECRET_ACCESS_KEY="+s.SecretKey,
		"AWS_CONFIG_FILE="+none, "AWS_SHARED_CREDENTIALS_FILE="+none, "AWS_DEFAULT_REGION=us-east-1", "PYTHONDONTWRITEBYTECODE=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", name, err, out)
	}
}

func functionFile(t *testing.T) string {
	t.Helper()
	return filepath.Join(testdata(t), "index.py")
}

func testdata(t *testing.T) string {
	t.Helper()
	return filepath.Join(testenv.RepoRoot(t), "e2e", "testdata", "lambda")
}
