//go:build !linux

package double

import (
	"fmt"
	"os"
)

// Main is the double's main function, which needs Linux. It returns the exit
// status.
func Main([]string) int {
	fmt.Fprintln(os.Stderr, "the double of Firecracker needs Linux")
	return 1
}
