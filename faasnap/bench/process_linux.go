package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// counters are what the kernel counts of a process.
type counters struct {
	minor, major int64 // page faults
	read         int64 // bytes that it has had read from disks
}

func (c counters) sub(before counters) counters {
	return counters{c.minor - before.minor, c.major - before.major, c.read - before.read}
}

// countersOf reads the counters of a process, which has to be this user's or
// this process root's.
func countersOf(pid int) (counters, error) {
	var c counters
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return c, fmt.Errorf("count page faults: %w", err)
	}
	// The name of the program, in parentheses, may have anything in it.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 10 {
		return c, fmt.Errorf("count page faults: malformed %q", text)
	}
	var errs [2]error
	c.minor, errs[0] = strconv.ParseInt(fields[7], 10, 64)
	c.major, errs[1] = strconv.ParseInt(fields[9], 10, 64)
	if err := errors.Join(errs[:]...); err != nil {
		return c, fmt.Errorf("count page faults: %w", err)
	}
	c.read, err = field("/proc/"+strconv.Itoa(pid)+"/io", "read_bytes:")
	return c, err
}

// anonymousBytes is how much memory a process has that belongs to no file.
func anonymousBytes(pid int) (int64, error) {
	kb, err := field("/proc/"+strconv.Itoa(pid)+"/smaps_rollup", "Anonymous:")
	return kb << 10, err
}

// field reads the number after a name in a file of the kernel's.
func field(path, name string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			if parts := strings.Fields(rest); len(parts) > 0 {
				return strconv.ParseInt(parts[0], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("%s has no %q", path, name)
}
