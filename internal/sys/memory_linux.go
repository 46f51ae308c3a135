package sys

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

func memoryBytes() (int64, error) {
	var info syscall.Sysinfo_t
	if err := syscall.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("ask for the machine's memory: %w", err)
	}
	total := int64(info.Totalram) * int64(info.Unit)
	// Inside a container the limit stands at the root of the hierarchy, of
	// version 2 or 1.
	for _, file := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if limit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && limit > 0 {
			total = min(total, limit)
		}
	}
	return total, nil
}
