package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/volley-run/volley/particle"
)

// Codes of errors that the specification leaves to plugins.
const (
	// ErrNoAddressLeft says that all endpoints of the network are in use.
	ErrNoAddressLeft uint = 100
	// ErrAddressTaken says that the address that was asked for is another's, or
	// none of this node's.
	ErrAddressTaken uint = 101
	// ErrConflict says that the network, or an interface, is there in another way.
	ErrConflict uint = 102
	// ErrNotAsAdded says that CHECK has not found what ADD had made.
	ErrNotAsAdded uint = 103
)

// invalid says what is wrong with a field of the configuration.
func invalid(field, format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, field+": "+fmt.Sprintf(format, args...), "")
}

// specError is invalid for what a particle.Spec has found.
func specError(err error) error {
	if wrong, ok := errors.AsType[*particle.SpecError](err); ok {
		return invalid("network."+wrong.Field, "%s", wrong.Problem)
	}
	return err
}

// cniError gives an error of particle its code and its remedy.
func cniError(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*types.Error](err); ok {
		return err
	}
	code, remedy := types.ErrInternal, ""
	switch {
	case isSpecError(err):
		return specError(err)
	case errors.Is(err, particle.ErrNoEndpointLeft):
		code, remedy = ErrNoAddressLeft, "remove containers, or declare the network with more endpoints"
	case errors.Is(err, particle.ErrConflict):
		code, remedy = ErrConflict, "volley net ls shows which networks there are; one that has changed has to be removed first"
	case errors.Is(err, particle.ErrBusy), errors.Is(err, context.DeadlineExceeded):
		code, remedy = types.ErrTryAgainLater, "another process is changing the network"
	case errors.Is(err, fs.ErrPermission):
		remedy = "the plugin has to run as root"
	}
	return types.NewError(code, err.Error(), remedy)
}

func isSpecError(err error) bool {
	_, ok := errors.AsType[*particle.SpecError](err)
	return ok
}
