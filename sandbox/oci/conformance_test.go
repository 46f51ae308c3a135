//go:build linux

package oci_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/volley-run/volley/internal/testenv"
	"github.com/volley-run/volley/sandbox"
	"github.com/volley-run/volley/sandbox/oci"
	"github.com/volley-run/volley/sandbox/sandboxtest"
)

const (
	initTimeout  = 3 * time.Second
	maxProcesses = 60
)

// conform runs the conformance suite on a runtime.
func conform(t *testing.T, runtime string, opts sandboxtest.Options) {
	initPath := sandboxtest.BuildInit(t)
	opts.Memory = true
	opts.Tmp = true
	opts.ReadOnlyRoot = true
	opts.UID = 993
	opts.NoNetwork = true
	opts.InitTimeout = initTimeout
	sandboxtest.Run(t, func(t *testing.T) sandbox.Driver {
		d, err := oci.New(t.Context(), oci.Config{
			Runtime: runtime, Dir: t.TempDir(), Init: initPath, Unpacker: sandboxtest.DirUnpacker{},
			InitTimeout: initTimeout, MaxProcesses: maxProcesses, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}, opts)
}

func TestRuncConforms(t *testing.T) {
	testenv.Need(t, testenv.Runc)
	conform(t, oci.Runc, sandboxtest.Options{Processes: maxProcesses, OwnProcesses: true})
}

// Not asked of gVisor: that functions cannot have more than so many processes
// and go on, and that they cannot read volley-init's environment, in which
// there is nothing but PATH.
func TestRunscConforms(t *testing.T) {
	testenv.Need(t, testenv.Runsc)
	conform(t, oci.Runsc, sandboxtest.Options{Slow: true})
}
