//go:build !linux

package main

import (
	"errors"

	"github.com/spf13/cobra"
)

// newNetCommand returns a command that says what it needs.
func newNetCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "net",
		Short:              "Give the functions of a job their own addresses on an overlay network (Linux only)",
		DisableFlagParsing: true,
		RunE:               func(*cobra.Command, []string) error { return errors.New("networks need Linux") },
	}
}
