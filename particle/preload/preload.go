// Package preload knows the library that keeps programs to their network
// addresses by overriding functions of the C library (thesis 3.2.2).
//
// The library, preload.c, serves programs that are linked to the C library
// dynamically and make their system calls through it. One that does not (a
// static binary, most Go programs), or that empties LD_PRELOAD, evades it:
// it prevents accidents, and where it is the only discipline there is, that is
// all there is.
//
// What it does is decided by VOLLEY_ADDRESS and VOLLEY_ADDRESS6:
//
//   - bind to 0.0.0.0, :: or a loopback address is to the endpoint's own; to ::
//     without an IPv6 address of its own, to its IPv4 address, mapped. To
//     another's address it is EPERM.
//   - connect to such an address is to the endpoint's own, and so are datagrams
//     by sendto, sendmsg and sendmmsg.
//   - A socket that is connected, listened on or sent from without bind is
//     bound to the endpoint's address first.
//
// `make build` builds it as libvolley-address.so where there is a C compiler.
package preload

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// Library is the name of the library's file.
const Library = "libvolley-address.so"

// The environment variables by which a program, and the library, learn the
// endpoint's addresses.
const (
	EnvAddress  = "VOLLEY_ADDRESS"
	EnvAddress6 = "VOLLEY_ADDRESS6"
)

// Find returns the absolute path of the library beside this program. An error
// that wraps os.ErrNotExist means that it has not been built.
func Find() (string, error) {
	exe, err := os.Executable()
	if err == nil {
		exe, err = filepath.EvalSymlinks(exe)
	}
	if err != nil {
		return "", fmt.Errorf("find %s: %w", Library, err)
	}
	path := filepath.Join(filepath.Dir(exe), Library)
	if _, err := os.Stat(path); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("find %s: %w (build it with `make build`, which needs a C compiler)", Library, err)
		}
		return "", fmt.Errorf("find %s: %w", Library, err)
	}
	return path, nil
}

// Env returns env with the endpoint's addresses in it, of which one may be
// invalid, and with the library at that path loaded before what LD_PRELOAD has
// already. An empty library changes nothing about LD_PRELOAD. env itself stays
// as it is.
func Env(library string, env []string, address, address6 netip.Addr) []string {
	const preload = "LD_PRELOAD="
	loaded := library
	result := make([]string, 0, len(env)+3)
	for _, v := range env {
		switch name, _, _ := strings.Cut(v, "="); {
		case name == EnvAddress, name == EnvAddress6:
			continue // of an endpoint that started this program
		case name == "LD_PRELOAD" && library != "":
			if others := strings.TrimPrefix(v, preload); others != "" {
				loaded = library + ":" + others
			}
			continue
		}
		result = append(result, v)
	}
	if library != "" {
		result = append(result, preload+loaded)
	}
	for _, a := range []struct {
		name    string
		address netip.Addr
	}{{EnvAddress, address}, {EnvAddress6, address6}} {
		if a.address.IsValid() {
			result = append(result, a.name+"="+a.address.String())
		}
	}
	return result
}
