// Command echo is a function for AWS Lambda's Go library that returns its
// event: the least that a function can do. The benchmarks call it, and it is an
// example of a function in Go:
//
//	CGO_ENABLED=0 go build -o echo/bootstrap ./examples/echo
//	volley deploy echo echo
package main

import (
	"context"
	"encoding/json"

	"github.com/aws/aws-lambda-go/lambda"
)

func main() {
	lambda.Start(func(_ context.Context, event json.RawMessage) (json.RawMessage, error) { return event, nil })
}
