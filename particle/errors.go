package particle

import "errors"

var (
	// ErrNotFound says that this node has no such network or endpoint.
	ErrNotFound = errors.New("not found on this node")
	// ErrBusy says that another process is changing the network.
	ErrBusy = errors.New("another process is changing the network")
	// ErrNoEndpointLeft says that all endpoints of a pool are in use.
	ErrNoEndpointLeft = errors.New("all endpoints are in use")
	// ErrEndpointTaken says that the endpoint that was asked for is another's.
	ErrEndpointTaken = errors.New("the endpoint is in use")
	// ErrNoPrefixLeft says that a job's prefix has no part left for a node.
	ErrNoPrefixLeft = errors.New("all parts of the prefix are taken")
	// ErrBridgeFull says that a bridge has no port left: Linux ends at 1,023.
	ErrBridgeFull = errors.New("the bridge is full: it has 1023 ports")
	// ErrConflict says that a network is declared already in another way, or
	// that its VNI belongs to another one.
	ErrConflict = errors.New("in conflict with what is there")
	// ErrUnsupported says that this kernel cannot do what was asked for.
	ErrUnsupported = errors.New("not supported by this kernel")
)
