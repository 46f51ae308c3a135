//go:build !linux

package main

import (
	"errors"

	"github.com/spf13/cobra"
)

// newBenchFaaSnapCommand returns a command that says what it needs.
func newBenchFaaSnapCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "faasnap",
		Short:              "Measure how soon functions in restored microVMs answer (Linux only)",
		DisableFlagParsing: true,
		RunE:               func(*cobra.Command, []string) error { return errors.New("microVMs need Linux") },
	}
}
