//go:build !linux

package main

import (
	"errors"

	"github.com/spf13/cobra"
)

// newBenchParticleCommand returns a command that says what it needs.
func newBenchParticleCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "particle",
		Short:              "Measure how soon a burst of endpoints is on an overlay (Linux only)",
		DisableFlagParsing: true,
		RunE:               func(*cobra.Command, []string) error { return errors.New("networks need Linux") },
	}
}
