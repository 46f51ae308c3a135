//go:build unix

package sandboxtest

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/sandbox"
)

func (s *suite) languageTests() []test {
	return []test{
		{"Python handlers are called as on Lambda", s.testPython},
		{"Python errors are told as on Lambda", s.testPythonErrors},
		{"Python code that cannot be loaded is an error", s.testPythonInit},
		{"JavaScript handlers are called as on Lambda", s.testNode},
		{"JavaScript errors are told as on Lambda", s.testNodeErrors},
		{"JavaScript code that cannot be loaded is an error", s.testNodeInit},
		{"JavaScript handlers can stream", s.testNodeStream},
	}
}

const pythonCode = `
import json, logging, sys
logger = logging.getLogger()
logger.setLevel(logging.INFO)

def handler(event, context):
    what = event.get("do")
    if what == "context":
        return {
            "id": context.aws_request_id, "arn": context.invoked_function_arn, "name": context.function_name,
            "memory": context.memory_limit_in_mb, "group": context.log_group_name, "custom": context.client_context.custom,
            "remaining": 0 < context.get_remaining_time_in_millis() <= 30000,
        }
    if what == "log":
        print("printed")
        logger.info("logged %d", 1)
        print("no end", end="")
        return None
    if what == "bytes":
        return b"\x00raw"
    if what == "set":
        return {1, 2}
    if what == "raise":
        raise ValueError("so it goes")
    if what == "exit":
        sys.exit(4)
    return event.get("data")
`

func (s *suite) testPython(t *testing.T) {
	testenv.Need(t, testenv.Python3)
	var log collector
	box := s.createLogging(t, s.function(script(t, "python3.11", "pkg/main.handler", map[string]string{"pkg/main.py": pythonCode})), &log)
	text := "grüße \U0001F600"
	wantAnswer(t, invoke(t, box, request(t, do{"do": "echo", "data": text})), text)
	large := strings.Repeat("x", 5<<20)
	if resp := invoke(t, box, request(t, do{"data": large})); len(resp.Payload) != len(large)+2 {
		t.Errorf("of %d bytes %d came back", len(large), len(resp.Payload))
	}
	if resp := invoke(t, box, request(t, do{"do": "bytes"})); string(resp.Payload) != "\x00raw" {
		t.Errorf("bytes came back as %q", resp.Payload)
	}
	req := request(t, do{"do": "context"})
	req.ClientContext = []byte(`{"custom":{"who":"Zoë"}}`)
	var got map[string]any
	if err := json.Unmarshal(invoke(t, box, req).Payload, &got); err != nil {
		t.Fatal(err)
	}
	custom, _ := got["custom"].(map[string]any)
	if got["id"] != req.ID || got["arn"] != function.ARN("behave") || got["name"] != "behave" || got["memory"] != "256" ||
		got["group"] != "/aws/lambda/behave" || got["remaining"] != true || custom["who"] != "Zoë" {
		t.Errorf("context %v", got)
	}
	req = request(t, do{"do": "log"})
	wantAnswer(t, invoke(t, box, req), nil)
	lines := log.of("stdout")
	if len(lines) != 3 || lines[0] != "printed" || lines[2] != "no end" ||
		!strings.HasPrefix(lines[1], "[INFO]\t") || !strings.HasSuffix(lines[1], "Z\t"+req.ID+"\tlogged 1") {
		t.Errorf("lines %q", lines)
	}
}

func (s *suite) testPythonErrors(t *testing.T) {
	testenv.Need(t, testenv.Python3)
	box := s.create(t, s.function(script(t, "python3", "main.handler", map[string]string{"main.py": pythonCode})))
	req := request(t, do{"do": "raise"})
	req.LogTail = true
	resp := invoke(t, box, req)
	wantError(t, resp, req, "ValueError", "so it goes", false)
	var report struct {
		RequestID  string   `json:"requestId"`
		StackTrace []string `json:"stackTrace"`
	}
	if err := json.Unmarshal(resp.Payload, &report); err != nil {
		t.Fatal(err)
	}
	if report.RequestID != req.ID || len(report.StackTrace) != 1 || !strings.Contains(report.StackTrace[0], `raise ValueError("so it goes")`) {
		t.Errorf("report %+v", report)
	}
	if !strings.Contains(string(resp.LogTail), "[ERROR] ValueError: so it goes\nTraceback (most recent call last):\n") {
		t.Errorf("log tail %s", resp.LogTail)
	}
	req = request(t, do{"do": "set"})
	wantError(t, invoke(t, box, req), req, "Runtime.MarshalError",
		"Unable to marshal response: Object of type set is not JSON serializable", false)
	req = request(t, nil)
	req.Payload = []byte("{no json")
	if resp := invoke(t, box, req); !strings.Contains(string(resp.Payload), "Runtime.UnmarshalError") || resp.Broken {
		t.Errorf("response %s", resp.Payload)
	}
	req = request(t, do{"do": "exit"})
	wantError(t, invoke(t, box, req), req, "Runtime.ExitError", "RequestId: ID Error: Runtime exited with error: exit status 4", true)
}

func (s *suite) testPythonInit(t *testing.T) {
	testenv.Need(t, testenv.Python3)
	for _, tc := range []struct{ handler, code, kind, message string }{
		{"missing.handler", "", "Runtime.ImportModuleError", "Unable to import module 'missing': No module named 'missing'"},
		{"main.handler", "import nowhere", "Runtime.ImportModuleError", "No module named 'nowhere'"},
		{"main.handler", "def handler(:", "Runtime.UserCodeSyntaxError", "Syntax error in module 'main'"},
		{"main.other", pythonCode, "Runtime.HandlerNotFound", "Handler 'other' missing on module 'main'"},
		{"main.handler", "1/0", "ZeroDivisionError", "division by zero"},
		{"main.handler", "import os; os._exit(9)", "Runtime.ExitError", "exit status 9"},
	} {
		s.wantInitError(t, s.function(script(t, "python3", tc.handler, map[string]string{"main.py": tc.code})), tc.kind, tc.message)
	}
}

const nodeCode = `
async function handler(event, context) {
  switch (event.do) {
    case 'context':
      return {
        id: context.awsRequestId, arn: context.invokedFunctionArn, name: context.functionName, memory: context.memoryLimitInMB,
        custom: context.clientContext.custom, remaining: context.getRemainingTimeInMillis() > 0,
      };
    case 'log': console.log('logged'); console.error('to stderr'); return undefined;
    case 'throw': throw new TypeError('so it goes');
    case 'later': setTimeout(() => { throw new RangeError('too late'); }, 10); return new Promise(() => {});
    case 'reject': Promise.reject(new Error('nobody cares')); return new Promise((resolve) => setTimeout(resolve, 2000));
    case 'exit': process.exit(4); break;
    default: return event.data;
  }
}
function callback(event, context, done) {
  if (event.do === 'fail') done(new Error('called back'));
  else if (event.do === 'never') setTimeout(() => {}, 20);
  else setTimeout(() => done(null, event.data), 5);
}
`

func (s *suite) testNode(t *testing.T) {
	testenv.Need(t, testenv.Node)
	for name, set := range map[string]func(*function.Function){
		"CommonJS": script(t, "nodejs20.x", "src/index.handler", map[string]string{"src/index.js": nodeCode + "exports.handler = handler;"}),
		"modules":  script(t, "nodejs22.x", "index.handler", map[string]string{"index.mjs": nodeCode + "export { handler };"}),
		"modules by package.json": script(t, "node", "index.handler", map[string]string{
			"index.js": nodeCode + "export { handler };", "package.json": `{"type":"module"}`,
		}),
	} {
		t.Run(name, func(t *testing.T) {
			var log collector
			box := s.createLogging(t, s.function(set), &log)
			text := "grüße \U0001F600"
			wantAnswer(t, invoke(t, box, request(t, do{"data": text})), text)
			req := request(t, do{"do": "context"})
			req.ClientContext = []byte(`{"custom":{"who":"Zoë"}}`)
			var got map[string]any
			if err := json.Unmarshal(invoke(t, box, req).Payload, &got); err != nil {
				t.Fatal(err)
			}
			custom, _ := got["custom"].(map[string]any)
			if got["id"] != req.ID || got["arn"] != function.ARN("behave") || got["name"] != "behave" || got["memory"] != "256" ||
				got["remaining"] != true || custom["who"] != "Zoë" {
				t.Errorf("context %v", got)
			}
			wantAnswer(t, invoke(t, box, request(t, do{"do": "log"})), nil)
			if !slices.Equal(log.of("stdout"), []string{"logged"}) || !slices.Equal(log.of("stderr"), []string{"to stderr"}) {
				t.Errorf("lines %q and %q", log.of("stdout"), log.of("stderr"))
			}
		})
	}
	box := s.create(t, s.function(script(t, "nodejs", "index.callback", map[string]string{"index.cjs": nodeCode + "exports.callback = callback;"})))
	large := strings.Repeat("x", 5<<20)
	wantAnswer(t, invoke(t, box, request(t, do{"data": large})), large)
	wantAnswer(t, invoke(t, box, request(t, do{"do": "never"})), nil)
	req := request(t, do{"do": "fail"})
	wantError(t, invoke(t, box, req), req, "Error", "called back", false)
	wantAnswer(t, invoke(t, box, request(t, do{"data": 1})), 1)
}

func (s *suite) testNodeErrors(t *testing.T) {
	testenv.Need(t, testenv.Node)
	set := script(t, "node", "index.handler", map[string]string{"index.js": nodeCode + "exports.handler = handler;"})
	box := s.create(t, s.function(set))
	req := request(t, do{"do": "throw"})
	resp := invoke(t, box, req)
	wantError(t, resp, req, "TypeError", "so it goes", false)
	if !strings.Contains(string(resp.Payload), `"trace":["TypeError: so it goes","    at handler (`) {
		t.Errorf("report %s", resp.Payload)
	}
	req = request(t, nil)
	req.Payload = []byte("{no json")
	if resp := invoke(t, box, req); !strings.Contains(string(resp.Payload), "Runtime.UnmarshalError") || resp.Broken {
		t.Errorf("response %s", resp.Payload)
	}
	for _, tc := range []struct{ what, kind, message string }{
		{"later", "RangeError", "too late"},
		{"reject", "Runtime.UnhandledPromiseRejection", "nobody cares"},
		{"exit", "Runtime.ExitError", "RequestId: ID Error: Runtime exited with error: exit status 4"},
	} {
		box := s.create(t, s.function(set))
		req := request(t, do{"do": tc.what})
		wantError(t, invoke(t, box, req), req, tc.kind, tc.message, true)
	}
}

func (s *suite) testNodeInit(t *testing.T) {
	testenv.Need(t, testenv.Node)
	for _, tc := range []struct{ handler, code, kind, message string }{
		{"missing.handler", "", "Runtime.ImportModuleError", "Cannot find module 'missing'"},
		{"index.handler", "require('./nowhere')", "Runtime.ImportModuleError", "Cannot find module './nowhere'"},
		{"index.handler", "function handler( {", "Runtime.UserCodeSyntaxError", "SyntaxError"},
		{"index.other", nodeCode, "Runtime.HandlerNotFound", "index.other is undefined or not exported"},
		{"index.handler", "throw new EvalError('at load')", "EvalError", "at load"},
	} {
		s.wantInitError(t, s.function(script(t, "node", tc.handler, map[string]string{"index.js": tc.code})), tc.kind, tc.message)
	}
}

const nodeStreaming = `
export const handler = awslambda.streamifyResponse(async (event, stream, context) => {
  if (event.do === 'early') throw new Error('before the first byte');
  if (event.do === 'http') {
    stream = awslambda.HttpResponseStream.from(stream, { statusCode: 201, headers: { 'x-a': 'b' } });
  } else {
    stream.setContentType('text/plain');
  }
  stream.write('one,');
  await new Promise((resolve) => setTimeout(resolve, 20));
  if (event.do === 'nobody') setTimeout(() => { throw new RangeError('nobody catches'); }, 0);
  if (event.do === 'nobody') await new Promise((resolve) => setTimeout(resolve, 2000));
  if (event.do === 'late') throw new Error('after the first byte');
  stream.write('two');
  stream.end();
});
`

func (s *suite) testNodeStream(t *testing.T) {
	testenv.Need(t, testenv.Node)
	box := s.create(t, s.function(script(t, "node", "index.handler", map[string]string{"index.mjs": nodeStreaming})))
	stream := func(what string) (sandbox.Request, sandbox.Response, []byte) {
		var got []byte
		req := request(t, do{"do": what})
		req.Stream = func(p []byte) error { got = append(got, p...); return nil }
		return req, invoke(t, box, req), got
	}
	if _, resp, got := stream("text"); string(got) != "one,two" || resp.ContentType != "text/plain" || resp.FunctionError != "" {
		t.Errorf("got %q, response %+v", got, resp)
	}
	_, resp, got := stream("http")
	prelude := []byte(`{"statusCode":201,"headers":{"x-a":"b"}}` + "\x00\x00\x00\x00\x00\x00\x00\x00")
	if resp.ContentType != "application/vnd.awslambda.http-integration-response" || !bytes.Equal(got, append(prelude, "one,two"...)) {
		t.Errorf("got %q, content type %q", got, resp.ContentType)
	}
	req, resp, got := stream("early")
	wantError(t, resp, req, "Error", "before the first byte", false)
	if len(got) > 0 {
		t.Errorf("got %q before the first byte", got)
	}
	req, resp, got = stream("late")
	wantError(t, resp, req, "Error", "after the first byte", false)
	if string(got) != "one," {
		t.Errorf("got %q", got)
	}
	if _, _, got := stream("text"); string(got) != "one,two" {
		t.Errorf("after the errors: %q", got)
	}
	req, resp, got = stream("nobody")
	if resp.FunctionError == "" || !strings.Contains(string(resp.Payload), "nobody catches") || string(got) != "one," {
		t.Errorf("request %s: got %q, response %+v %s", req.ID, got, resp, resp.Payload)
	}
}
