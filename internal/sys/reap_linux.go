package sys

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
)

func reapAdopted(command string) {
	ended := []byte("(" + command + ") Z ")
	for _, pid := range childrenOf(os.Getpid()) {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err == nil && bytes.Contains(stat, ended) {
			_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil) // another call may have been faster
		}
	}
}
