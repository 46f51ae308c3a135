package sys

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// ticksPerSecond is the unit of CPU times in /proc, the same on all
// architectures that Go knows.
const ticksPerSecond = 100

func usage(pid int) (u ProcessUsage, ok bool) {
	dir := "/proc/" + strconv.Itoa(pid)
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return u, false
	}
	u.MemoryBytes = statusBytes(status, "VmRSS:")
	u.MaxMemoryBytes = statusBytes(status, "VmHWM:")
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return u, false
	}
	// Fields are counted from the name in parentheses, which may have anything
	// in it.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return u, false
	}
	for _, field := range fields[11:13] { // utime and stime
		ticks, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return u, false
		}
		u.CPU += time.Duration(ticks) * (time.Second / ticksPerSecond)
	}
	return u, true
}

// statusBytes returns a value of /proc/PID/status that is given in kB.
func statusBytes(status []byte, name string) int64 {
	_, rest, ok := bytes.Cut(status, []byte("\n"+name))
	if !ok {
		return 0
	}
	line, _, _ := bytes.Cut(rest, []byte{'\n'})
	fields := bytes.Fields(line)
	if len(fields) == 0 {
		return 0
	}
	kb, err := strconv.ParseInt(string(fields[0]), 10, 64)
	if err != nil {
		return 0
	}
	return kb << 10
}

func childrenOf(pid int) []int {
	// Each thread has the children that it started itself.
	files, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	if err != nil {
		return nil
	}
	var pids []int
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the thread is gone
		}
		for _, field := range bytes.Fields(text) {
			if child, err := strconv.Atoi(string(field)); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}
