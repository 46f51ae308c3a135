// Package wire is what controllers and invokers say to each other over the bus:
// protobuf messages, and the subjects they go to.
package wire

//go:generate protoc --go_out=. --go_opt=paths=source_relative wire.proto

// ReportSubject is where invokers send their reports. Every controller hears
// them; the leader acts on them.
const ReportSubject = "volley.report"

// InvokerSubject is where an invoker takes its messages.
func InvokerSubject(name string) string { return "volley.invoker." + name }

// AnnounceSubject is where a new leader asks all invokers for full reports: a
// ToInvoker with only epoch and resync.
const AnnounceSubject = "volley.announce"

// LogSubject is the subject of a function's log lines in the log LogName; each
// record is lines of JSON, each a function.LogLine.
func LogSubject(function string) string { return "volley.logs." + function }

// Names of what is kept on the bus.
const (
	FunctionsBucket = "volley-functions"  // KV: function name to function.Function as JSON
	LeaderBucket    = "volley-leader"     // KV: the leader's lease
	EpochBucket     = "volley-epoch"      // KV: the number of the latest term
	RecordsBucket   = "volley-records"    // KV: request id to the outcome of an Event invocation
	CodeBucket      = "volley-code"       // Objects: packages by their SHA-256
	AsyncQueue      = "volley-async"      // Queue: Event invocations
	DeadBucket      = "volley-deadletter" // KV: request id to what could not be done
	LogName         = "volley-logs"       // Log
)
