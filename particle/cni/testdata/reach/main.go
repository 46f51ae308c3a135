// Reach is what containers run in tests: "reach serve" answers on port 80 with
// the address at which it was called, "reach ADDRESS" prints the answer.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(what string) error {
	if what == "serve" {
		l, err := net.Listen("tcp", ":80")
		if err != nil {
			return err
		}
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			fmt.Fprint(c, c.LocalAddr().(*net.TCPAddr).IP)
			c.Close()
		}
	}
	c, err := net.DialTimeout("tcp", net.JoinHostPort(what, "80"), 30*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = io.Copy(os.Stdout, c)
	return err
}
