package double

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/volley-run/volley/faasnap/mem/memtest"
)

const (
	mib      = 1 << 20
	pageSize = 4096
)

// guest is what runs in the VM.
type guest struct {
	memory   []byte
	listener net.Listener
	conns    []net.Conn
	reset    bool // conns end when the guest goes on
}

// option reports whether a word is on the guest's command line.
func (v *double) option(word string) bool {
	for w := range strings.FieldsSeq(v.config.CommandLine) {
		if w == word {
			return true
		}
	}
	return false
}

// boot makes a guest and its memory.
func (v *double) boot() error {
	size := v.config.MemoryMiB * mib
	memory, err := memtest.Map(size)
	if err != nil {
		return fault(err.Error())
	}
	for at := 0; at < size/4; at += 3 * pageSize {
		scribble(memory[at:at+pageSize], uint64(at))
	}
	v.guest.memory = memory
	if err := v.listen(); err != nil {
		return err
	}
	fmt.Printf("Linux version double\nCommand line: %s\n", v.config.CommandLine)
	for word, end := range map[string]func(){"double.boot=off": off, "double.boot=crash": crash} {
		if v.option(word) {
			time.AfterFunc(20*time.Millisecond, end)
		}
	}
	return nil
}

func off() { os.Exit(0) }

func crash() {
	fmt.Fprintln(os.Stderr, "thread 'fc_vcpu 0' panicked: the double was told to")
	os.Exit(148)
}

// scribble fills b with what depends on a seed.
func scribble(b []byte, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	for ; len(b) >= 8; b = b[8:] {
		binary.LittleEndian.PutUint64(b, rng.Uint64())
	}
}

// listen makes the host's end of the vsock.
func (v *double) listen() error {
	if v.config.Vsock == "" {
		return nil
	}
	l, err := net.Listen("unix", v.config.Vsock)
	if err != nil {
		return fault("the vsock cannot be made: " + err.Error())
	}
	v.guest.listener = l
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go v.talk(conn)
		}
	}()
	return nil
}

// talk is a connection to the guest.
func (v *double) talk(conn net.Conn) {
	defer conn.Close()
	lines := bufio.NewReader(conn)
	line, err := lines.ReadString('\n')
	if err != nil {
		return
	}
	if !v.accept(conn, line) {
		return
	}
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		if _, err := io.WriteString(conn, v.answer(strings.TrimSuffix(line, "\n"))); err != nil {
			return
		}
	}
}

// awaitRunning waits, with the lock held, until the guest's processors run.
func (v *double) awaitRunning() {
	for v.state != running {
		v.resumed.Wait()
	}
}

func (v *double) accept(conn net.Conn, line string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.awaitRunning()
	if line != "CONNECT 52\n" || v.option("double.agent=none") {
		return false
	}
	if _, err := io.WriteString(conn, "OK 1073741824\n"); err != nil {
		return false
	}
	v.guest.conns = append(v.guest.conns, conn)
	return true
}

// answer is what the agent answers to a line.
func (v *double) answer(line string) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.awaitRunning()
	what, argument, _ := strings.Cut(line, " ")
	switch what {
	case "echo":
		return argument + "\n"
	case "fill":
		seed, err := strconv.ParseUint(argument, 10, 64)
		if err != nil {
			return err.Error() + "\n"
		}
		at := len(v.guest.memory) / 4 * 3
		scribble(v.guest.memory[at:at+mib], seed)
		return "ok\n"
	case "sum":
		return fmt.Sprintf("%x\n", sha256.Sum256(v.guest.memory))
	case "off":
		off()
	case "crash":
		crash()
	}
	return "what?\n"
}

// resume lets the guest go on, with the lock held.
func (v *double) resume() {
	v.state = running
	if v.guest.reset {
		for _, conn := range v.guest.conns {
			_ = conn.Close() // the host's end may be closed
		}
		v.guest.conns, v.guest.reset = nil, false
	}
	v.resumed.Broadcast()
}
