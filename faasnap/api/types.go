package api

import (
	"encoding/json"
	"time"
)

// The types below are what the API takes and gives, as JSON. The description of
// each member goes into the OpenAPI document.

// Error is what went wrong.
type Error struct {
	Code    string `json:"code" doc:"what kind of error it is, for programs"`
	Message string `json:"message" doc:"what went wrong, for people"`
}

// Info says what serves the API.
type Info struct {
	Version string   `json:"version" doc:"the API's version: v1"`
	VMM     string   `json:"vmm" doc:"the virtual machine monitor; snapshots are for this one"`
	Mode    string   `json:"mode" doc:"how snapshots are restored unless a request says otherwise"`
	Modes   []string `json:"modes" doc:"all modes, from the slowest on"`
}

// BuildRequest says what a function is made of.
type BuildRequest struct {
	From           string            `json:"from,omitempty" doc:"absolute path of a directory on the host with the function's code; excludes image"`
	Image          string            `json:"image,omitempty" doc:"container image: a reference in a registry, or the absolute path of an archive on the host; excludes from"`
	Runtime        string            `json:"runtime,omitempty" doc:"such as python3.11; only with from"`
	Handler        string            `json:"handler,omitempty" doc:"what the runtime calls, such as app.handler; only with from"`
	Packages       []string          `json:"packages,omitempty" doc:"Debian packages beyond the runtime; only with from"`
	Environment    map[string]string `json:"environment,omitempty" doc:"the function's environment variables"`
	MemoryMB       int               `json:"memoryMB,omitempty" doc:"the function's memory in MiB, which gives the number of processors as well (default 128)"`
	TimeoutSeconds int               `json:"timeoutSeconds,omitempty" doc:"time limit of an invocation (default 3)"`
	GuestMemoryMB  int               `json:"guestMemoryMB,omitempty" doc:"memory of the virtual machine in MiB, an even number (default 2048)"`
}

// Function is a function that has been built.
type Function struct {
	Name           string            `json:"name" doc:"its name"`
	PackageType    string            `json:"packageType" doc:"Zip (code for a runtime) or Image (a container image)"`
	Runtime        string            `json:"runtime,omitempty" doc:"the runtime, for package type Zip"`
	Handler        string            `json:"handler,omitempty" doc:"what the runtime calls"`
	ImageRef       string            `json:"imageRef,omitempty" doc:"the container image, for package type Image"`
	Environment    map[string]string `json:"environment,omitempty" doc:"environment variables"`
	MemoryMB       int               `json:"memoryMB" doc:"the function's memory in MiB"`
	TimeoutSeconds int               `json:"timeoutSeconds" doc:"time limit of an invocation"`
	GuestMemoryMB  int               `json:"guestMemoryMB" doc:"memory of its virtual machines in MiB"`
	Created        time.Time         `json:"created" doc:"when it was built"`
	Kernel         string            `json:"kernel" doc:"path of the kernel that is booted"`
	Initrd         string            `json:"initrd" doc:"path of the initrd"`
	Drives         []string          `json:"drives" doc:"paths of the disk images"`
}

// Network is the tap that is a machine's network device.
type Network struct {
	Namespace string `json:"namespace,omitempty" doc:"path of the network namespace that the tap is in; empty is the daemon's"`
	Tap       string `json:"tap,omitempty" doc:"name of the tap, which must be there already"`
	MAC       string `json:"mac,omitempty" doc:"address of the device; a boot without gets one, and a restored machine keeps its own"`
	Job       string `json:"job,omitempty" doc:"network of a job that the machine becomes an endpoint of, in place of the members before"`
	Address   string `json:"address,omitempty" doc:"the IPv4 address there; in answers only"`
	Address6  string `json:"address6,omitempty" doc:"the IPv6 address there; in answers only"`
}

// StartRequest asks for a virtual machine: a boot of function, or a restore of
// snapshot.
type StartRequest struct {
	Function  string   `json:"function,omitempty" doc:"name of the function to boot; excludes snapshot"`
	Snapshot  string   `json:"snapshot,omitempty" doc:"name of the snapshot to restore; excludes function"`
	Mode      string   `json:"mode,omitempty" doc:"how the snapshot is restored"`
	HugeZeros bool     `json:"hugeZeros,omitempty" doc:"back long zero regions by huge pages (modes faasnap, regions)"`
	Populate  bool     `json:"populate,omitempty" doc:"put the loading set into the page tables as it arrives (mode faasnap)"`
	Paused    bool     `json:"paused,omitempty" doc:"leave the restored machine paused"`
	Network   *Network `json:"network,omitempty" doc:"network device; a restored machine has one just if the saved one had"`
}

// VM is a running virtual machine.
type VM struct {
	ID       string      `json:"id" doc:"its id"`
	Function string      `json:"function" doc:"the function in it"`
	Snapshot string      `json:"snapshot,omitempty" doc:"what it was restored from"`
	Mode     string      `json:"mode" doc:"how it came about"`
	State    string      `json:"state" doc:"idle, busy (an invocation runs) or paused"`
	Standby  bool        `json:"standby,omitempty" doc:"whether its virtual machine monitor had waited for it"`
	Created  time.Time   `json:"created" doc:"when its start began"`
	Network  *Network    `json:"network,omitempty" doc:"its network device"`
	Times    StartTimes  `json:"times" doc:"how long its start took"`
	Host     HostFigures `json:"host" doc:"what it costs the host"`
}

// StartTimes are how long the parts of a start took, in milliseconds.
type StartTimes struct {
	PrepareMs  float64 `json:"prepareMs" doc:"opening the snapshot and starting what loads it"`
	VMMMs      float64 `json:"vmmMs" doc:"until the guest ran"`
	PrefetchMs float64 `json:"prefetchMs" doc:"what a blocking prefetch took of that"`
	AgentMs    float64 `json:"agentMs" doc:"until the guest took an invocation, for a boot"`
	StartMs    float64 `json:"startMs" doc:"all of it"`
}

// HostFigures are what a machine's process has cost the host so far.
type HostFigures struct {
	PID           int   `json:"pid" doc:"the virtual machine monitor's process"`
	MajorFaults   int64 `json:"majorFaults" doc:"page faults that waited for a disk"`
	MinorFaults   int64 `json:"minorFaults" doc:"page faults that did not"`
	ResidentBytes int64 `json:"residentBytes" doc:"memory in use, with what it shares"`
}

// SnapshotRequest asks for a snapshot: recorded of function, or of the machine
// vm as it is.
type SnapshotRequest struct {
	Name     string            `json:"name,omitempty" doc:"the snapshot's name (default: the function's)"`
	Function string            `json:"function,omitempty" doc:"function to boot, warm up, save and record; excludes vm"`
	VM       string            `json:"vm,omitempty" doc:"id of a booted machine to save as it is, without a working set; excludes function"`
	Inputs   []json.RawMessage `json:"inputs,omitempty" doc:"events to warm up with and to record at (default: one empty object)"`
	Faults   bool              `json:"faults,omitempty" doc:"record also what the modes reap, concurrent and groups need"`
	Replace  bool              `json:"replace,omitempty" doc:"take the place of a snapshot of that name"`
	Network  *Network          `json:"network,omitempty" doc:"network device of the recorded machine"`
}

// Snapshot is what is known of a snapshot.
type Snapshot struct {
	Name        string         `json:"name" doc:"its name"`
	Problem     string         `json:"problem,omitempty" doc:"why it cannot be used; the members below are missing then"`
	ID          string         `json:"id,omitempty" doc:"tells snapshots of one name apart"`
	Created     time.Time      `json:"created,omitzero" doc:"when it was completed"`
	Function    string         `json:"function,omitempty" doc:"the function in it"`
	VMM         string         `json:"vmm,omitempty" doc:"the virtual machine monitor that it is for"`
	MAC         string         `json:"mac,omitempty" doc:"address of its network device, if it has one"`
	Remote      string         `json:"remote,omitempty" doc:"address of the object store that has its memory; what is on disk of the file memory has been fetched"`
	Faults      bool           `json:"faults,omitempty" doc:"whether it has what the modes reap, concurrent and groups need"`
	MemoryBytes int64          `json:"memoryBytes,omitempty" doc:"guest memory"`
	Files       []SnapshotFile `json:"files,omitempty" doc:"its files"`
	Plan        *PlanSummary   `json:"plan,omitempty" doc:"how its memory is restored"`
	Standby     *Standby       `json:"standby,omitempty" doc:"virtual machine monitors that wait for its restores"`
}

// Standby are virtual machine monitors that wait for restores of a snapshot.
type Standby struct {
	Count int `json:"count" doc:"how many there shall be"`
	Ready int `json:"ready" doc:"how many there are"`
}

// StandbyRequest asks for virtual machine monitors to wait.
type StandbyRequest struct {
	Count int `json:"count" doc:"how many there shall be, 0 to 64"`
}

// SnapshotFile is a file of a snapshot.
type SnapshotFile struct {
	Name      string `json:"name" doc:"its name"`
	SizeBytes int64  `json:"sizeBytes" doc:"its length"`
	DiskBytes int64  `json:"diskBytes" doc:"what it takes on disk"`
}

// PlanSummary is a restore plan in numbers.
type PlanSummary struct {
	Pages          int `json:"pages" doc:"pages of guest memory, of 4096 bytes each"`
	ZeroPages      int `json:"zeroPages" doc:"pages that are anonymous memory"`
	ZeroRegions    int `json:"zeroRegions" doc:"in how many regions"`
	ColdPages      int `json:"coldPages" doc:"pages that are read from the memory file on demand"`
	ColdRegions    int `json:"coldRegions" doc:"in how many regions"`
	LoadingPages   int `json:"loadingPages" doc:"pages of the loading set, which are read ahead"`
	LoadingRegions int `json:"loadingRegions" doc:"in how many regions"`
	WorkingPages   int `json:"workingPages" doc:"pages of the recorded working set"`
	Groups         int `json:"groups" doc:"groups of the working set"`
}

// Plan is a restore plan.
type Plan struct {
	Pages   int      `json:"pages" doc:"pages of guest memory"`
	Regions []Region `json:"regions" doc:"in the order of addresses, without gaps"`
}

// Region is a range of guest memory that one mapping serves.
type Region struct {
	Start  int    `json:"start" doc:"first page"`
	End    int    `json:"end" doc:"page after the last"`
	Source string `json:"source" doc:"zero, memory (cold: the memory file) or loading (the loading set)"`
	Group  int    `json:"group" doc:"lowest working-set group in it, from 0; for loading"`
	Offset int    `json:"offset" doc:"where in the source's file it begins, in pages"`
}

// Range is pages from the first number to before the second.
type Range [2]int

// WorkingSet is what the recorded invocations made resident.
type WorkingSet struct {
	Pages  int       `json:"pages" doc:"pages of guest memory"`
	Groups [][]Range `json:"groups" doc:"in the order in which they became resident"`
}

// Resident says what of a snapshot is in the page cache.
type Resident struct {
	Memory  ResidentFile `json:"memory" doc:"the memory file, whose pages are those of the guest"`
	Loading ResidentFile `json:"loading" doc:"the loading-set file"`
}

// ResidentFile says which pages of a file are in the page cache.
type ResidentFile struct {
	Pages    int     `json:"pages" doc:"pages of the file"`
	Resident int     `json:"resident" doc:"how many are in the page cache"`
	Ranges   []Range `json:"ranges" doc:"which"`
}

// LearnRequest asks for more to be recorded of a snapshot.
type LearnRequest struct {
	Inputs  []json.RawMessage `json:"inputs" doc:"events to record at, at least one"`
	Network *Network          `json:"network,omitempty" doc:"network device, just if the saved machine had one"`
}

// Learned is what a snapshot is like once it has learnt.
type Learned struct {
	Snapshot Snapshot   `json:"snapshot" doc:"the snapshot as it is now"`
	Accuracy []Accuracy `json:"accuracy" doc:"for each input, how good the snapshot's plan was for it before"`
}

// Accuracy says how good a plan was for an invocation, zero pages aside.
type Accuracy struct {
	UsedPages   int `json:"usedPages" doc:"pages that the invocation wanted"`
	LoadedPages int `json:"loadedPages" doc:"pages that the plan loads ahead"`
	HitPages    int `json:"hitPages" doc:"pages that are both"`
}

// Verified says that a snapshot is what was written.
type Verified struct {
	Name  string `json:"name" doc:"the snapshot"`
	Files int    `json:"files" doc:"how many files were compared with their checksums"`
	Bytes int64  `json:"bytes" doc:"how many bytes of them"`
	// Remote is where the rest of its memory is; the store has it.
	Remote string `json:"remote,omitempty" doc:"address of the object store that has the rest, which was not read"`
}

// PushRequest asks for a copy of a snapshot in an object store.
type PushRequest struct {
	URL string `json:"url" doc:"where to: file:///directory or s3://bucket/prefix, with the parameters endpoint and region; the keys are the daemon's"`
}

// PullRequest asks for a copy of a snapshot from an object store.
type PullRequest struct {
	URL     string `json:"url" doc:"where it was pushed to"`
	Lazy    bool   `json:"lazy,omitempty" doc:"leave its memory there: machines fetch what they touch beyond the loading set"`
	Replace bool   `json:"replace,omitempty" doc:"take the place of a snapshot of that name"`
}

// CollectRequest asks for the removal of what is of no use.
type CollectRequest struct {
	DryRun bool `json:"dryRun,omitempty" doc:"only say what would be removed"`
}

// Collected is what was of no use.
type Collected struct {
	Removed []Garbage `json:"removed" doc:"what was removed, or would be"`
}

// Garbage is a snapshot of no use.
type Garbage struct {
	Name   string `json:"name,omitempty" doc:"its name; empty for unfinished ones"`
	Reason string `json:"reason" doc:"why it is of no use"`
}

// Functions is a list of functions.
type Functions struct {
	Functions []Function `json:"functions" doc:"in the order of names"`
}

// VMs is a list of virtual machines.
type VMs struct {
	VMs []VM `json:"vms" doc:"the oldest first"`
}

// Snapshots is a list of snapshots.
type Snapshots struct {
	Snapshots []Snapshot `json:"snapshots" doc:"in the order of names"`
}

// Event is a line of the answer to a request that takes long, for clients that
// accept application/x-ndjson: steps, and then one of the other members.
type Event struct {
	Step     string    `json:"step,omitempty" doc:"what begins now"`
	Function *Function `json:"function,omitempty" doc:"the result of a build"`
	Snapshot *Snapshot `json:"snapshot,omitempty" doc:"the result of a recording"`
	Learned  *Learned  `json:"learned,omitempty" doc:"the result of learning"`
	Error    *Error    `json:"error,omitempty" doc:"why there is no result"`
}
