package api

import (
	"net/http"
)

// route is a path with a method. The OpenAPI document is made of what it says.
type route struct {
	method, path string
	// name is the operation's, for generated clients; summary says what it does.
	name, summary string
	query         []parameter
	// body and result are values of the types that are taken and given as JSON;
	// nil is nothing, or what media says.
	body, result any
	// event says that the body is an invocation's event.
	event bool
	// media is the result's type if it is not JSON.
	media string
	// status is that of success.
	status int
	// stream says that the result also comes as Events.
	stream bool
	// errors are the codes of errors that are to be expected.
	errors []string
	handle func(*Server, http.ResponseWriter, *http.Request) error
}

type parameter struct{ name, kind, doc string }

// routes are all that the API has.
func routes() []route {
	starts := []parameter{
		{"hugeZeros", "boolean", "back long zero regions by huge pages (modes faasnap, regions)"},
		{"populate", "boolean", "put the loading set into the page tables as it arrives (mode faasnap)"},
	}
	log := parameter{"log", "string", "tail: return the end of the function's log in a header"}
	return []route{
		{
			method: "GET", path: "/v1", name: "getInfo", summary: "Say what serves the API",
			result: Info{}, handle: (*Server).getInfo,
		},
		{
			method: "GET", path: "/v1/openapi.json", name: "getOpenAPI", summary: "Return this document",
			media: "application/json", handle: (*Server).getOpenAPI,
		},
		{
			method: "GET", path: "/v1/functions", name: "listFunctions", summary: "List the functions",
			result: Functions{}, handle: (*Server).listFunctions,
		},
		{
			method: "PUT", path: "/v1/functions/{name}", name: "putFunction", summary: "Build a function from a directory or a container image, in the place of one of that name. Its snapshots stay as they are",
			body: BuildRequest{}, result: Function{}, stream: true, errors: []string{CodeInvalid, CodeBusy, CodeImage}, handle: (*Server).putFunction,
		},
		{
			method: "GET", path: "/v1/functions/{name}", name: "getFunction", summary: "Tell of a function",
			result: Function{}, errors: []string{CodeNotFound}, handle: (*Server).getFunction,
		},
		{
			method: "DELETE", path: "/v1/functions/{name}", name: "deleteFunction", summary: "Remove a function, but not its snapshots and machines",
			status: http.StatusNoContent, errors: []string{CodeNotFound}, handle: (*Server).deleteFunction,
		},
		{
			method: "POST", path: "/v1/functions/{name}/invocations", name: "invokeFunction",
			summary: "Restore or boot a machine, run one invocation, and end the machine. The body is the event, the answer what the function returns; if it fails, the header Volley-Function-Error is there and the answer is its error",
			query: append([]parameter{
				{"mode", "string", "how the machine comes about: boot, or a mode of restoring (default: the daemon's, or boot if the function has no snapshot)"},
				{"snapshot", "string", "the snapshot (default: the one with the function's name)"},
				{"tap", "string", "name of the tap that is the machine's network device"},
				{"namespace", "string", "path of the network namespace that the tap is in"},
				{"job", "string", "network of a job that the machine becomes an endpoint of, in place of a tap"}, log,
			}, starts...),
			event: true, media: "application/json", errors: []string{CodeInvalid, CodeNotFound, CodeTooLarge, CodeDamaged, CodeUnsupported, CodeStore}, handle: (*Server).invokeFunction,
		},
		{
			method: "GET", path: "/v1/vms", name: "listVMs", summary: "List the running virtual machines",
			result: VMs{}, handle: (*Server).listVMs,
		},
		{
			method: "POST", path: "/v1/vms", name: "startVM", summary: "Boot a function's machine, or restore one from a snapshot",
			body: StartRequest{}, result: VM{}, status: http.StatusCreated,
			errors: []string{CodeInvalid, CodeNotFound, CodeDamaged, CodeVersion, CodeInit, CodeUnsupported}, handle: (*Server).postVM,
		},
		{
			method: "GET", path: "/v1/vms/{id}", name: "getVM", summary: "Tell of a machine",
			result: VM{}, errors: []string{CodeNotFound}, handle: (*Server).getVM,
		},
		{
			method: "DELETE", path: "/v1/vms/{id}", name: "deleteVM", summary: "End a machine, whatever runs in it",
			status: http.StatusNoContent, errors: []string{CodeNotFound}, handle: (*Server).deleteVM,
		},
		{
			method: "POST", path: "/v1/vms/{id}/pause", name: "pauseVM", summary: "Stop a machine's processors",
			result: VM{}, errors: []string{CodeNotFound, CodeBusy}, handle: (*Server).pauseVM,
		},
		{
			method: "POST", path: "/v1/vms/{id}/resume", name: "resumeVM", summary: "Let them go on",
			result: VM{}, errors: []string{CodeNotFound, CodeBusy}, handle: (*Server).resumeVM,
		},
		{
			method: "POST", path: "/v1/vms/{id}/invocations", name: "invokeVM",
			summary: "Run an invocation in a machine, which runs one at a time. See invokeFunction for the answer",
			query:   []parameter{log}, event: true, media: "application/json",
			errors: []string{CodeInvalid, CodeNotFound, CodeBusy, CodePaused, CodeTooLarge, CodeDamaged}, handle: (*Server).invokeVM,
		},
		{
			method: "GET", path: "/v1/snapshots", name: "listSnapshots", summary: "List the snapshots",
			result: Snapshots{}, handle: (*Server).listSnapshots,
		},
		{
			method: "POST", path: "/v1/snapshots", name: "makeSnapshot", summary: "Record a snapshot of a function, or save a machine",
			body: SnapshotRequest{}, result: Snapshot{}, status: http.StatusCreated, stream: true,
			errors: []string{CodeInvalid, CodeNotFound, CodeExists, CodeBusy, CodePaused, CodeInit, CodeFunction}, handle: (*Server).postSnapshot,
		},
		{
			method: "GET", path: "/v1/snapshots/{name}", name: "getSnapshot", summary: "Tell of a snapshot and its plan",
			result: Snapshot{}, errors: []string{CodeNotFound, CodeDamaged, CodeVersion}, handle: (*Server).getSnapshot,
		},
		{
			method: "DELETE", path: "/v1/snapshots/{name}", name: "deleteSnapshot", summary: "Remove a snapshot. Machines that were restored from it go on",
			status: http.StatusNoContent, errors: []string{CodeNotFound}, handle: (*Server).deleteSnapshot,
		},
		{
			method: "POST", path: "/v1/snapshots/{name}/learn", name: "learnSnapshot", summary: "Record further invocations of a snapshot, and plan it anew from the latest ones",
			body: LearnRequest{}, result: Learned{}, stream: true,
			errors: []string{CodeInvalid, CodeNotFound, CodeDamaged, CodeVersion, CodeFunction}, handle: (*Server).learnSnapshot,
		},
		{
			method: "POST", path: "/v1/snapshots/{name}/verify", name: "verifySnapshot", summary: "Read all that is on disk of a snapshot and compare it with its checksums",
			result: Verified{}, errors: []string{CodeNotFound, CodeDamaged, CodeVersion, CodeStore}, handle: (*Server).verifySnapshot,
		},
		{
			method: "POST", path: "/v1/snapshots/{name}/push", name: "pushSnapshot", summary: "Copy a snapshot into an object store, in the place of one that is there. It is there when all of it is",
			body: PushRequest{}, result: Snapshot{}, status: http.StatusCreated, stream: true,
			errors: []string{CodeInvalid, CodeNotFound, CodeDamaged, CodeVersion, CodeStore}, handle: (*Server).pushSnapshot,
		},
		{
			method: "POST", path: "/v1/snapshots/{name}/pull", name: "pullSnapshot", summary: "Copy a snapshot from an object store, and its function if there is none of its name",
			body: PullRequest{}, result: Snapshot{}, status: http.StatusCreated, stream: true,
			errors: []string{CodeInvalid, CodeNotFound, CodeExists, CodeDamaged, CodeVersion, CodeStore}, handle: (*Server).pullSnapshot,
		},
		{
			method: "PUT", path: "/v1/snapshots/{name}/standby", name: "putStandby",
			summary: "Keep so many virtual machine monitors started for restores of a snapshot by the mode faasnap: they have only to let the guest run",
			body:    StandbyRequest{}, result: Standby{}, errors: []string{CodeInvalid, CodeNotFound, CodeDamaged, CodeVersion}, handle: (*Server).putStandby,
		},
		{
			method: "GET", path: "/v1/snapshots/{name}/plan", name: "getPlan", summary: "Return which file serves which pages of guest memory",
			result: Plan{}, errors: []string{CodeNotFound, CodeDamaged, CodeVersion}, handle: (*Server).getPlan,
		},
		{
			method: "GET", path: "/v1/snapshots/{name}/map.svg", name: "getMap", summary: "Draw the plan",
			media: "image/svg+xml", errors: []string{CodeNotFound, CodeDamaged, CodeVersion}, handle: (*Server).getMap,
		},
		{
			method: "GET", path: "/v1/snapshots/{name}/working-set", name: "getWorkingSet", summary: "Return which pages the recorded invocations made resident, in which order",
			result: WorkingSet{}, errors: []string{CodeNotFound, CodeDamaged, CodeVersion}, handle: (*Server).getWorkingSet,
		},
		{
			method: "GET", path: "/v1/snapshots/{name}/resident", name: "getResident", summary: "Return which pages of the memory file and the loading set are in the page cache now (mincore)",
			result: Resident{}, errors: []string{CodeNotFound, CodeDamaged, CodeVersion, CodeUnsupported}, handle: (*Server).getResident,
		},
		{
			method: "POST", path: "/v1/gc", name: "collect", summary: "Remove snapshots whose function is gone, or that are damaged or unfinished",
			body: CollectRequest{}, result: Collected{}, errors: []string{CodeInvalid}, handle: (*Server).collect,
		},
	}
}
