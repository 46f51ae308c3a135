//go:build unix

package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
)

// speak serves events by the Runtime API itself, in ways that no library
// would.
func speak(mode string) error {
	base := "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2018-06-01/runtime/"
	if mode == "report-at-init" {
		_, err := post(base+"init/error", []byte(`{"errorType":"Extra.Fault","errorMessage":"no way"}`),
			http.Header{"Lambda-Runtime-Function-Error-Type": {"Extra.Fault"}}, nil)
		return err
	}
	for {
		id, payload, err := next(base)
		if err != nil {
			return err
		}
		invocation := base + "invocation/" + id
		switch mode {
		case "garbage":
			_, err = post(invocation+"/response", []byte("\x00\xff{garbage"), nil, nil)
		case "answer-once":
			if _, err := post(invocation+"/response", []byte(`"once"`), nil, nil); err != nil {
				return err
			}
			os.Exit(0)
		case "no-http":
			err = sendRaw("\x16\x03\x01garbage\r\n\r\n")
			if err == nil {
				_, err = post(invocation+"/response", []byte(`"still here"`), nil, nil)
			}
		case "wrong-id":
			var status, again int
			status, err = post(base+"invocation/00000000-0000-0000-0000-000000000000/response", []byte(`"wrong"`), nil, nil)
			if err == nil {
				_, err = post(invocation+"/response", fmt.Appendf(nil, "%d", status), nil, nil)
			}
			if err == nil {
				again, err = post(invocation+"/response", []byte(`"twice"`), nil, nil)
			}
			if err == nil && again != http.StatusBadRequest {
				err = fmt.Errorf("a second answer got status %d", again)
			}
		case "ask-again":
			// Before the answer: that is refused.
			var resp *http.Response
			if resp, err = http.Get(base + "invocation/next"); err == nil {
				_, err = post(invocation+"/response", fmt.Appendf(nil, "%d", resp.StatusCode), nil, nil)
				_ = resp.Body.Close()
			}
		case "too-large":
			var status int
			status, err = post(invocation+"/response", make([]byte, 7<<20), nil, nil)
			fmt.Println("status", status)
		case "stream":
			err = stream(invocation, payload)
		default:
			return fmt.Errorf("behave: mode %q is unknown", mode)
		}
		if err != nil {
			return err
		}
	}
}

func next(base string) (id string, payload []byte, err error) {
	resp, err := http.Get(base + "invocation/next")
	if err != nil {
		return "", nil, err
	}
	defer resp.Body.Close()
	payload, err = io.ReadAll(resp.Body)
	return resp.Header.Get("Lambda-Runtime-Aws-Request-Id"), payload, err
}

func post(url string, body []byte, header, trailer http.Header) (status int, err error) {
	return postFrom(url, bytes.NewReader(body), header, trailer)
}

func postFrom(url string, body io.Reader, header, trailer http.Header) (status int, err error) {
	req, err := http.NewRequest(http.MethodPost, url, body)
	if err != nil {
		return 0, err
	}
	if header != nil {
		req.Header = header
	}
	req.Trailer = trailer
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// sendRaw sends bytes that are no HTTP on a connection of their own.
func sendRaw(text string) error {
	conn, err := net.Dial("tcp", os.Getenv("AWS_LAMBDA_RUNTIME_API"))
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, conn)
	return err
}

// stream answers with three pieces of a megabyte, and with an error after
// those if the payload asks for it.
func stream(invocation string, payload []byte) error {
	header := http.Header{"Lambda-Runtime-Function-Response-Mode": {"streaming"}, "Content-Type": {"text/plain"}}
	var trailer http.Header
	if strings.Contains(string(payload), "fail") {
		trailer = http.Header{
			"Lambda-Runtime-Function-Error-Type": {"Extra.Fault"},
			"Lambda-Runtime-Function-Error-Body": {base64.StdEncoding.EncodeToString([]byte(`{"errorType":"Extra.Fault","errorMessage":"midway"}`))},
		}
	}
	r, w := io.Pipe()
	go func() {
		var err error
		for i := 0; i < 3 && err == nil; i++ {
			_, err = w.Write(bytes.Repeat([]byte{byte('a' + i)}, 1<<20))
		}
		_ = w.CloseWithError(err)
	}()
	_, err := postFrom(invocation+"/response", r, header, trailer)
	return err
}
