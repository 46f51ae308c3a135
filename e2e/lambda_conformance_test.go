package e2e_test

import (
	"testing"

	"github.com/volley-run/volley/e2e/lambdasuite"
	"github.com/volley-run/volley/internal/sigv4"
	"github.com/volley-run/volley/internal/testenv"
)

// lambdaServer runs "volley server" for clients of AWS Lambda.
func lambdaServer(t *testing.T, driver string) lambdasuite.Server {
	t.Helper()
	d, api := startServer(t, "--driver", driver)
	keys, err := sigv4.OpenKeys(api.credentials, nil)
	if err != nil {
		t.Fatal(err)
	}
	key := keys.First()
	return lambdasuite.Server{Endpoint: d.address, AccessKey: key.ID, SecretKey: key.Secret}
}

func TestTheAWSCLIWorksWithTheServer(t *testing.T) {
	testenv.Need(t, testenv.Python3, testenv.AWSCLI)
	t.Parallel()
	lambdasuite.AWSCLI(t, lambdaServer(t, "process"))
}

func TestBoto3WorksWithTheServer(t *testing.T) {
	testenv.Need(t, testenv.Python3, testenv.Boto3)
	t.Parallel()
	lambdasuite.Boto3(t, lambdaServer(t, "process"))
}

func TestTheAWSSDKForGoWorksWithTheServer(t *testing.T) {
	testenv.Need(t, testenv.Python3)
	t.Parallel()
	lambdasuite.SDK(t, lambdaServer(t, "process"))
}

func TestTheAWSSDKForGoWorksWithContainers(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.Runc, testenv.Python3)
	t.Parallel()
	lambdasuite.SDK(t, lambdaServer(t, "runc"))
}
