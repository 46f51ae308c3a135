//go:build !linux

// volley-cni is Particle as a plugin of the Container Network Interface.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "volley-cni needs Linux")
	os.Exit(1)
}
