package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"time"
)

func (s *Server) getOpenAPI(w http.ResponseWriter, _ *http.Request) error {
	return s.answer(w, OpenAPI())
}

// object is a JSON object.
type object = map[string]any

// OpenAPI returns the document that describes the API, of OpenAPI 3.1. It is
// made of the routes and types themselves.
func OpenAPI() any {
	schemas := object{}
	paths := map[string]object{}
	for _, rt := range routes() {
		if paths[rt.path] == nil {
			paths[rt.path] = object{}
		}
		paths[rt.path][strings.ToLower(rt.method)] = rt.operation(schemas)
	}
	return object{
		"openapi": "3.1.0",
		"info": object{
			"title": "FaaSnap", "version": "1",
			"description": "Functions in virtual machines, restored from snapshots at nearly the speed of memory. It listens on a unix socket that is its owner's only, and asks nobody who they are.",
		},
		"servers":    []object{{"url": "/"}},
		"paths":      paths,
		"components": object{"schemas": schemas},
	}
}

func (rt route) operation(schemas object) object {
	op := object{"operationId": rt.name, "summary": rt.summary}
	var parameters []object
	for _, m := range regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(rt.path, -1) {
		parameters = append(parameters, object{"name": m[1], "in": "path", "required": true, "schema": object{"type": "string"}})
	}
	for _, q := range rt.query {
		parameters = append(parameters, object{"name": q.name, "in": "query", "description": q.doc, "schema": object{"type": q.kind}})
	}
	if parameters != nil {
		op["parameters"] = parameters
	}
	switch {
	case rt.event:
		op["requestBody"] = object{
			"description": fmt.Sprintf("the event, any JSON of at most %d bytes; none is an empty object", MaxEventBytes),
			"content":     object{"application/json": object{"schema": object{}}},
		}
	case rt.body != nil:
		op["requestBody"] = object{
			"description": fmt.Sprintf("at most %d bytes", MaxRequestBytes),
			"content":     object{"application/json": object{"schema": schema(reflect.TypeOf(rt.body), schemas)}},
		}
	}
	op["responses"] = rt.responses(schemas)
	return op
}

func (rt route) responses(schemas object) object {
	success := object{"description": "done"}
	content := object{}
	switch {
	case rt.result != nil:
		content["application/json"] = object{"schema": schema(reflect.TypeOf(rt.result), schemas)}
	case rt.media != "":
		content[rt.media] = object{"schema": object{}}
	}
	if rt.stream {
		content[eventStream] = object{"schema": schema(reflect.TypeFor[Event](), schemas)}
	}
	if len(content) > 0 {
		success["content"] = content
	}
	if rt.event {
		success["headers"] = invocationHeaders()
	}
	failure := func(description string) object {
		return object{"description": description, "content": object{"application/json": object{"schema": schema(reflect.TypeFor[Error](), schemas)}}}
	}
	status := rt.status
	if status == 0 {
		status = http.StatusOK
	}
	out := object{fmt.Sprint(status): success}
	if rt.stream {
		success["description"] = "done; with " + eventStream + " as accepted type the status is 200 and the answer a line for each step, and at last the result or the error"
	}
	byStatus := map[int][]string{}
	for _, code := range rt.errors {
		status := statusOf(code)
		byStatus[status] = append(byStatus[status], code)
	}
	for status, codes := range byStatus {
		out[fmt.Sprint(status)] = failure("code " + strings.Join(codes, ", "))
	}
	out["default"] = failure("any other error")
	return out
}

func invocationHeaders() object {
	headers := object{}
	for _, h := range []struct{ name, doc string }{
		{HeaderRequestID, "tells invocations apart"},
		{HeaderFunctionError, "Unhandled, if the function failed; the body is its error"},
		{HeaderLogResult, "end of the function's log in base64, with log=tail"},
		{HeaderMode, "how the machine came about"},
		{HeaderMajorFaults, "page faults of the machine's process, since its start, that waited for a disk"},
		{HeaderMinorFaults, "those that did not"},
		{HeaderResidentBytes, "memory that it has in use"},
		{HeaderFetchedBytes, "bytes that came from an object store for it"},
		{"Server-Timing", "milliseconds: start (of the machine, 0 if it ran already), run (of the function), total"},
	} {
		headers[h.name] = object{"description": h.doc, "schema": object{"type": "string"}}
	}
	return headers
}

// statusOf is the HTTP status that a code of an error comes with.
func statusOf(code string) int {
	switch code {
	case CodeInvalid:
		return http.StatusBadRequest
	case CodeNotFound:
		return http.StatusNotFound
	case CodeMethod:
		return http.StatusMethodNotAllowed
	case CodeExists, CodeBusy, CodePaused:
		return http.StatusConflict
	case CodeTooLarge:
		return http.StatusRequestEntityTooLarge
	case CodeDamaged, CodeVersion, CodeImage, CodeInit, CodeFunction:
		return http.StatusUnprocessableEntity
	case CodeUnsupported:
		return http.StatusNotImplemented
	case CodeStore:
		return http.StatusBadGateway
	case CodeClosed:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// schema describes a type. Structs go into schemas, once each.
func schema(t reflect.Type, schemas object) object {
	switch t {
	case reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case reflect.TypeFor[json.RawMessage]():
		return object{}
	case reflect.TypeFor[Range]():
		return object{"type": "array", "items": object{"type": "integer"}, "minItems": 2, "maxItems": 2, "description": "the first page, and the page after the last"}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return schema(t.Elem(), schemas)
	case reflect.Slice:
		return object{"type": "array", "items": schema(t.Elem(), schemas)}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": schema(t.Elem(), schemas)}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int, reflect.Int64:
		return object{"type": "integer"}
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.Struct:
		if schemas[t.Name()] == nil {
			schemas[t.Name()] = object{} // it is being described
			schemas[t.Name()] = structSchema(t, schemas)
		}
		return object{"$ref": "#/components/schemas/" + t.Name()}
	}
	return object{"type": "string"}
}

func structSchema(t reflect.Type, schemas object) object {
	properties := object{}
	required := []string{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		property := schema(f.Type, schemas)
		property["description"] = f.Tag.Get("doc")
		properties[name] = property
		if options == "" {
			required = append(required, name)
		}
	}
	out := object{"type": "object", "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		out["required"] = required
	}
	return out
}
