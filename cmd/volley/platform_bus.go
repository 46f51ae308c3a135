package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sophon/bus"
	"github.com/volley-run/volley/sophon/bus/natsserver"
)

// defaultNATSAddress is where a controller's embedded NATS server listens, so
// that invokers on the same machine find it.
const defaultNATSAddress = "127.0.0.1:4222"

// connectOptions say how to reach a NATS server.
type connectOptions struct {
	urls      []string
	tokenFile string
	replicas  int
}

func (o *connectOptions) registerToken(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.tokenFile, "token-file", "", "file with the token that the NATS server asks for")
}

// connect joins a NATS cluster.
func (o *connectOptions) connect(ctx context.Context, name string, log *slog.Logger) (bus.Bus, error) {
	token, err := readToken(o.tokenFile)
	if err != nil {
		return nil, err
	}
	b, err := bus.ConnectNATS(ctx, bus.NATSConfig{URLs: o.urls, Name: name, Token: token, Replicas: o.replicas, Log: log})
	if err != nil {
		return nil, withStatus(exitPlatform, err)
	}
	return b, nil
}

// readToken returns the token in the file that --token-file names, or "" if it
// names none.
func readToken(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "", usagef("--token-file: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// natsNode is a running NATS server and how to connect to it.
type natsNode struct {
	*natsserver.Server
	lock      io.Closer
	token     string
	tokenFile string
}

// startNATS starts a NATS server that keeps its data below dir. An empty
// address lets only this process connect. Beyond loopback it asks for a token,
// which is made at the first start.
func startNATS(address, dir string, log *slog.Logger) (*natsNode, error) {
	n := &natsNode{}
	cfg := natsserver.Config{StoreDir: filepath.Join(dir, "nats"), InProcessOnly: address == "", Log: log}
	if address != "" {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, usagef("address for NATS %q: %w; it must be HOST:PORT", address, err)
		}
		if cfg.Port, err = strconv.Atoi(port); err != nil || cfg.Port < 0 || cfg.Port > 65535 {
			return nil, usagef("address for NATS %q: the port must be a number up to 65535", address)
		}
		cfg.Host = host
		if !isLoopback(address) {
			n.tokenFile = filepath.Join(dir, "nats-token")
			if n.token, err = readOrMakeToken(n.tokenFile); err != nil {
				return nil, err
			}
			cfg.Token = n.token
		}
	}
	var err error
	n.lock, err = sys.LockFile(filepath.Join(dir, "nats.lock"))
	if errors.Is(err, sys.ErrLocked) {
		return nil, usagef("another volley runs in %s: end it, or give this one a directory of its own with --data", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("start NATS server: %w", err)
	}
	if n.Server, err = natsserver.Start(cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("%w (data in %s)", err, cfg.StoreDir), n.lock.Close())
	}
	return n, nil
}

// close ends the server and waits for it.
func (n *natsNode) close() error {
	n.Shutdown()
	return n.lock.Close()
}

func readOrMakeToken(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err == nil {
		return strings.TrimSpace(string(text)), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the token for NATS: %w", err)
	}
	token := natsserver.NewToken()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return "", fmt.Errorf("keep the token for NATS: %w", err)
	}
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("keep the token for NATS: %w", err)
	}
	return token, nil
}

// connect joins from within this process.
func (n *natsNode) connect(ctx context.Context, name string, log *slog.Logger) (bus.Bus, error) {
	return bus.ConnectNATS(ctx, bus.NATSConfig{InProcess: n.Server, Token: n.token, Name: name, Log: log})
}

// howToJoin is the command line by which an invoker joins.
func (n *natsNode) howToJoin() string {
	s := "volley invoker --join " + n.ClientURL()
	if n.tokenFile != "" {
		s += " --token-file " + n.tokenFile
	}
	return s
}

// isLoopback reports whether a listener at this address is out of reach for
// other machines.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func newNATSCommand() *cobra.Command {
	var data, listen string
	var logs logOptions
	cmd := &cobra.Command{
		Use:   "nats",
		Short: "Run a NATS server for controllers and invokers",
		Long: `Run the NATS server that Volley brings along, by itself: so that controllers can
come and go. Any other NATS server or cluster with JetStream, of version 2.10 or
newer and with max_payload 9MB, does as well.

Beyond loopback it asks for a token, which is in nats-token in the data
directory. Ctrl-C ends it.

Exit statuses: 0 after Ctrl-C, 1 it cannot run, 2 wrong usage.`,
		Example: `  volley nats
  volley nats --listen 10.0.0.1:4222 --data /var/lib/volley`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logs.open(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if data, err = dataDir(data); err != nil {
				return err
			}
			n, err := startNATS(listen, data, log)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "NATS is at %s (Ctrl-C ends)\nJoin it: %s\n", n.ClientURL(), n.howToJoin())
			<-cmd.Context().Done()
			return n.close()
		},
	}
	cmd.Flags().StringVar(&listen, "listen", defaultNATSAddress, "address to listen on; port 0 takes any free one")
	registerData(cmd, &data)
	logs.register(cmd)
	return cmd
}
