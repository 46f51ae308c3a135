package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/sprocket/platform"
	"github.com/volley-run/volley/sprocket/worker"
)

// newWorkerCommand is what platforms start; people do not call it.
func newWorkerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "worker",
		Short:  "Work for a coordinator (started by volley run)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := worker.Config{
				Address: os.Getenv(platform.EnvAddress), Worker: os.Getenv(platform.EnvWorker), Token: os.Getenv(platform.EnvToken),
				Fingerprint: os.Getenv(platform.EnvFingerprint), Dir: os.Getenv(platform.EnvDir), FFmpeg: os.Getenv(platform.EnvFFmpeg),
				Version: version(),
			}
			if cfg.Address == "" || cfg.Token == "" {
				return usagef("volley worker: is started by volley run, which tells it where its coordinator is")
			}
			// What the worker starts has no business with its credentials.
			for _, name := range []string{platform.EnvToken, platform.EnvFingerprint} {
				if err := os.Unsetenv(name); err != nil {
					return err
				}
			}
			return worker.Run(cmd.Context(), cfg)
		},
	}
}
