package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/particle/seccomp"
)

// confine does to the calling thread what the program is to inherit, but for
// its control group and its user.
func (o Options) confine() error {
	if o.Namespace != "" {
		if err := sys.EnterNetwork(o.Namespace); err != nil {
			return err
		}
	}
	if o.Cgroup != "" {
		if err := sys.ProtectControlGroups(); err != nil {
			return err
		}
	}
	if err := sys.NoNewPrivileges(); err != nil {
		return err
	}
	if o.KeepCapabilities {
		return nil
	}
	if err := sys.RestrictThread(sys.Landlock{ScopeAbstractSockets: true}); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return sys.DropNetworkPrivileges()
}

func execute(o Options, argv []string) error {
	if o.Discipline == Seccomp {
		return errors.New("the discipline seccomp needs a supervisor, which exec does not leave")
	}
	path, err := o.check(argv)
	if err != nil {
		return err
	}
	env, err := o.env()
	if err != nil {
		return err
	}
	return sys.OnThread(func() error {
		if o.Cgroup != "" {
			// 0 is who writes, all threads of it.
			if err := os.WriteFile(filepath.Join(o.Cgroup, "cgroup.procs"), []byte("0"), 0); err != nil {
				return fmt.Errorf("join control group: %w", err)
			}
		}
		if err := o.confine(); err != nil {
			return err
		}
		uid, gid := -1, -1
		if o.UID != nil {
			uid = *o.UID
		}
		if o.GID != nil {
			gid = *o.GID
		}
		if err := sys.SetThreadUser(uid, gid); err != nil {
			return err
		}
		if o.Dir != "" {
			if err := syscall.Chdir(o.Dir); err != nil {
				return fmt.Errorf("enter %s: %w", o.Dir, err)
			}
		}
		// The attributes of this thread become the process's: the kernel ends
		// the others.
		if err := syscall.Exec(path, argv, env); err != nil {
			return fmt.Errorf("execute %s: %w", path, err)
		}
		return nil
	})
}

// passed are the signals that Run passes on.
func passed() []os.Signal {
	return []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGCONT, syscall.SIGWINCH}
}

func run(ctx context.Context, o Options, argv []string, stdio Stdio) (int, error) {
	path, err := o.check(argv)
	if err != nil {
		return -1, err
	}
	cmd := exec.CommandContext(ctx, path)
	cmd.Args, cmd.Dir = argv, o.Dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdio.In, stdio.Out, stdio.Err
	if cmd.Env, err = o.env(); err != nil {
		return -1, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if o.UID != nil || o.GID != nil {
		c := &syscall.Credential{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}
		if o.UID != nil {
			c.Uid = uint32(*o.UID)
		}
		if o.GID != nil {
			c.Gid = uint32(*o.GID)
		}
		cmd.SysProcAttr.Credential = c
	}
	if o.Cgroup != "" {
		group, err := os.Open(o.Cgroup)
		if err != nil {
			return -1, fmt.Errorf("join control group: %w", err)
		}
		defer group.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	}

	// From before the start, so that none is lost.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passed()...)
	defer signal.Stop(signals)

	start := o.startPlain
	if o.Discipline == Seccomp {
		start = o.startSupervised
	}
	end, err := start(cmd)
	if err != nil {
		return -1, err
	}
	waited := make(chan error, 1)
	go func() { waited <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			fromKey := s == syscall.SIGINT || s == syscall.SIGQUIT || s == syscall.SIGWINCH
			if fromKey && sys.InForeground() {
				continue // the terminal sends it to the whole group
			}
			_ = cmd.Process.Signal(s) // it may have just ended
		case err := <-waited:
			return exitStatus(cmd, err, end())
		}
	}
}

// startPlain starts cmd and returns what is to be called once it has ended.
func (o Options) startPlain(cmd *exec.Cmd) (end func() error, err error) {
	started, ended := make(chan error, 1), make(chan struct{})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_ = sys.OnThread(func() error {
			err := o.confine()
			if err == nil {
				err = cmd.Start()
			}
			started <- err
			if err == nil {
				<-ended // the kernel takes this thread for the parent
			}
			return nil
		})
	}()
	if err := <-started; err != nil {
		<-gone
		return nil, err
	}
	return func() error {
		close(ended)
		<-gone
		return nil
	}, nil
}

func (o Options) startSupervised(cmd *exec.Cmd) (end func() error, err error) {
	s, err := seccomp.Start(cmd, seccomp.Endpoint{Address: o.Address, Address6: o.Address6}, o.confine)
	if err != nil {
		return nil, err
	}
	return s.Close, nil
}

// exitStatus turns what waiting gave into a status.
func exitStatus(cmd *exec.Cmd, waited, supervised error) (int, error) {
	var exit *exec.ExitError
	if waited != nil && !errors.As(waited, &exit) && !errors.Is(waited, context.Canceled) && !errors.Is(waited, context.DeadlineExceeded) {
		return -1, errors.Join(waited, supervised)
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal()), supervised
	}
	return status.ExitStatus(), supervised
}
