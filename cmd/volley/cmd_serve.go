package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/gateway/player"
)

func newServeCommand() *cobra.Command {
	var address string
	var verbose bool
	cmd := &cobra.Command{
		Use:   "serve DIR",
		Short: "Serve a page that plays a run's output",
		Long: `Serve a page that plays the output of a run (DASH, HLS, MP4 or thumbnails),
also while the run is still computing. Ctrl-C ends it.

It listens on loopback unless --listen says otherwise; whoever can reach that
address can watch. Exit statuses: 0 after Ctrl-C, 2 wrong usage, 4 no output in
DIR.`,
		Example: `  volley serve out
  volley serve out --listen 127.0.0.1:9000`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			level := slog.LevelWarn
			if verbose {
				level = slog.LevelDebug
			}
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
			handler, err := player.New(args[0], log)
			if err != nil {
				return err
			}
			err = serveUntilDone(cmd.Context(), address, handler, func(url string) {
				fmt.Fprintf(cmd.OutOrStdout(), "Watch it at %s (Ctrl-C ends)\n", url)
			})
			return errors.Join(err, handler.Close())
		},
	}
	cmd.Flags().StringVar(&address, "listen", "127.0.0.1:8080", "address to listen on; port 0 takes any free one")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "log requests")
	return cmd
}

// serveUntilDone serves HTTP until the context ends, then lets requests that
// are under way finish for a moment.
func serveUntilDone(ctx context.Context, address string, h http.Handler, ready func(url string)) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return usagef("listen on %s: %w; choose another address with --listen", address, err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	ready("http://" + l.Addr().String() + "/")
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		return errors.Join(err, srv.Close())
	}
	<-failed
	return nil
}
