package oci

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/volley-run/volley/internal/sys"
	"github.com/volley-run/volley/sandbox/agent"
	"github.com/volley-run/volley/sandbox/runtimes"
)

// systemDirs is what a host's root has its programs and libraries in. The
// table is constant.
var systemDirs = []string{"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"}

// etcEntries is what of the host's /etc programs need to run: patterns of
// names. Accounts, host keys and the configuration of services are not among
// it. The table is constant.
var etcEntries = []string{
	"alternatives", "ca-certificates", "ca-certificates.conf", "crypto-policies", "debian_version", "fonts", "host.conf",
	"java-*", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "magic", "mime.types", "nodejs", "os-release", "pki",
	"protocols", "python3*", "services", "ssl", "terminfo", "timezone",
}

// maxEtcFileBytes bounds what is copied of /etc.
const maxEtcFileBytes = 4 << 20

// initPath is where volley-init is in every root.
const initPath = "/.volley/init"

// hostName is what functions find as the name of their host.
const hostName = "sandbox"

// etcFiles are the files of /etc that are the same in all sandboxes. uid and
// gid are the function's.
func etcFiles(uid, gid uint32) map[string]string {
	return map[string]string{
		"passwd":        fmt.Sprintf("root:x:0:0:root:/:/sbin/nologin\nfunction:x:%d:%d:function:/tmp:/sbin/nologin\n", uid, gid),
		"group":         fmt.Sprintf("root:x:0:\nfunction:x:%d:\n", gid),
		"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
	}
}

// networkFiles are those that belong to a sandbox's own network.
func networkFiles() map[string]string {
	return map[string]string{
		"hosts":       "127.0.0.1 localhost " + hostName + "\n::1 localhost\n",
		"hostname":    hostName + "\n",
		"resolv.conf": "",
	}
}

// bind is a directory of the host that sandboxes see read-only.
type bind struct{ source, target string }

// buildHostRoot makes, in dir, the root of sandboxes that use the host's
// programs. It returns what of the host has to be bound on it. host is the
// host's root, mounts what is mounted there.
func buildHostRoot(dir, host, initBinary string, mounts []sys.Mount, uid, gid uint32) ([]bind, error) {
	if err := buildTop(dir, initBinary); err != nil {
		return nil, err
	}
	if err := runtimes.Write(filepath.Join(dir, agent.RuntimeDir)); err != nil {
		return nil, err
	}
	for _, name := range []string{agent.TaskRoot, "/opt"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return nil, fmt.Errorf("build host root: %w", err)
		}
	}
	binds, err := systemBinds(dir, host, mounts)
	if err != nil {
		return nil, err
	}
	for _, pattern := range etcEntries {
		matches, err := filepath.Glob(filepath.Join(host, "etc", pattern))
		if err != nil {
			return nil, fmt.Errorf("build host root: %w", err)
		}
		for _, m := range matches {
			if err := copyPublic(m, filepath.Join(dir, "etc", filepath.Base(m))); err != nil {
				return nil, fmt.Errorf("build host root: %w", err)
			}
		}
	}
	return binds, writeFiles(filepath.Join(dir, "etc"), etcFiles(uid, gid))
}

// buildTop makes what Volley puts on top of every root, those of images
// included.
func buildTop(dir, initBinary string) error {
	for _, name := range []string{"", "dev", "etc", "proc", "tmp", filepath.Dir(initPath)} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return fmt.Errorf("build root: %w", err)
		}
	}
	// What is mounted there gets its mode.
	if err := os.Chmod(filepath.Join(dir, agent.TmpDir), 0o777|fs.ModeSticky); err != nil {
		return fmt.Errorf("build root: %w", err)
	}
	// A copy, so that a new version of the file does not disturb sandboxes.
	if err := copyFile(initBinary, filepath.Join(dir, initPath), 0o755); err != nil {
		return fmt.Errorf("build root: %w", err)
	}
	return writeFiles(filepath.Join(dir, "etc"), networkFiles())
}

func writeFiles(dir string, files map[string]string) error {
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("build root: %w", err)
		}
	}
	return nil
}

// systemBinds makes the host's links and mount points for its directories in
// dir, and returns what belongs on the mount points. Mounts below the
// directories are listed one by one, because "read-only" holds for one mount
// only.
func systemBinds(dir, host string, mounts []sys.Mount) ([]bind, error) {
	var binds []bind
	for _, name := range systemDirs {
		source, target := filepath.Join(host, name), filepath.Join(dir, name)
		info, err := os.Lstat(source)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, fmt.Errorf("build host root: %w", err)
		case info.Mode().Type() == fs.ModeSymlink:
			to, err := os.Readlink(source)
			if err != nil {
				return nil, fmt.Errorf("build host root: %w", err)
			}
			if err := os.Symlink(to, target); err != nil {
				return nil, fmt.Errorf("build host root: %w", err)
			}
		case info.IsDir():
			if err := os.Mkdir(target, 0o755); err != nil {
				return nil, fmt.Errorf("build host root: %w", err)
			}
			binds = append(binds, bind{source, "/" + name})
			for _, m := range mounts {
				if m.Point != source && below(m.Point, source) {
					binds = append(binds, bind{m.Point, "/" + name + strings.TrimPrefix(m.Point, source)})
				}
			}
		}
	}
	if len(binds) == 0 {
		return nil, fmt.Errorf("build host root: %s has no directory of programs", host)
	}
	return binds, nil
}

// copyPublic copies what everybody on the host may read: files, links and
// directories. Private keys and the like are not that.
func copyPublic(source, target string) error {
	info, err := os.Lstat(source)
	if err != nil {
		return err
	}
	perm := info.Mode().Perm()
	switch info.Mode().Type() {
	case fs.ModeSymlink:
		to, err := os.Readlink(source)
		if err != nil {
			return err
		}
		return os.Symlink(to, target)
	case fs.ModeDir:
		if perm&0o005 != 0o005 || filepath.Base(source) == "private" {
			return nil
		}
		if err := os.Mkdir(target, 0o755); err != nil {
			return err
		}
		entries, err := os.ReadDir(source)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := copyPublic(filepath.Join(source, e.Name()), filepath.Join(target, e.Name())); err != nil {
				return err
			}
		}
	case 0:
		if perm&0o004 == 0 || info.Size() > maxEtcFileBytes {
			return nil
		}
		return copyFile(source, target, perm&0o111|0o644)
	}
	return nil
}

func copyFile(source, target string, perm fs.FileMode) (err error) {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, perm)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Chmod(perm)
}
