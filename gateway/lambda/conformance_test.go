package lambda

import (
	"net/http"
	"testing"

	"github.com/volley-run/volley/e2e/lambdasuite"
	"github.com/volley-run/volley/gateway/httpserver"
	"github.com/volley-run/volley/internal/testenv"
)

// serve serves a handler over HTTP on a platform that runs Python functions.
func serve(t *testing.T, h http.Handler) lambdasuite.Server {
	t.Helper()
	s, err := httpserver.Start(t.Context(), httpserver.Config{Addr: "127.0.0.1:0", Handler: h})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return lambdasuite.Server{Endpoint: s.URL(), AccessKey: testKey.ID, SecretKey: testKey.Secret}
}

func pythonPlatform() *fakePlatform {
	p := newFakePlatform()
	p.run = runPython
	return p
}

func TestTheAWSSDKWorksUnchanged(t *testing.T) {
	testenv.Need(t, testenv.Python3)
	lambdasuite.SDK(t, serve(t, newHandler(pythonPlatform(), nil)))
}

func TestTheAWSCLIWorksUnchanged(t *testing.T) {
	testenv.Need(t, testenv.Python3, testenv.AWSCLI)
	t.Parallel()
	lambdasuite.AWSCLI(t, serve(t, newHandler(pythonPlatform(), nil)))
}

func TestBoto3WorksUnchanged(t *testing.T) {
	testenv.Need(t, testenv.Python3, testenv.Boto3)
	t.Parallel()
	lambdasuite.Boto3(t, serve(t, newHandler(pythonPlatform(), nil)))
}
