package double

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"os"

	"github.com/volley-run/volley/faasnap/mem/memtest"
)

// brokenLoad is a load that has failed on the way, after which Firecracker ends.
type brokenLoad struct{ error }

// save writes a state file, a checksum and the configuration, and all of memory.
func (v *double) save(state, memory string) error {
	v.guest.reset = true
	text, err := json.Marshal(v.config)
	if err != nil {
		return err
	}
	sealed := fmt.Appendf(nil, "%016x\n%s", checksum(text), text)
	if err := os.WriteFile(state, sealed, 0o600); err != nil {
		return fault("the state cannot be written: " + err.Error())
	}
	f, err := os.OpenFile(memory, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fault("memory cannot be written: " + err.Error())
	}
	if info, err := f.Stat(); err == nil && info.Size() != int64(len(v.guest.memory)) {
		if err := f.Truncate(0); err != nil {
			return errors.Join(fault("memory cannot be written: "+err.Error()), f.Close())
		}
	}
	_, err = f.Write(v.guest.memory)
	if err := errors.Join(err, f.Close()); err != nil {
		return fault("memory cannot be written: " + err.Error())
	}
	return nil
}

func checksum(b []byte) uint64 { return crc64.Checksum(b, crc64.MakeTable(crc64.ECMA)) }

// readState is the opposite of what save does with the state.
func readState(path string) (c config, err error) {
	sealed, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	sum, text, _ := bytes.Cut(sealed, []byte{'\n'})
	if string(sum) != fmt.Sprintf("%016x", checksum(text)) {
		return c, errors.New("the state is damaged: CRC64 validation failed")
	}
	return c, json.Unmarshal(text, &c)
}

// load is PUT /snapshot/load.
func (v *double) load(body []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.state != notStarted || v.configured {
		return fault("loading a snapshot is not allowed after anything is configured")
	}
	var b struct {
		State  string `json:"snapshot_path"`
		Memory *struct {
			Type string `json:"backend_type"`
			Path string `json:"backend_path"`
		} `json:"mem_backend"`
		Resume  bool `json:"resume_vm"`
		Network []struct {
			ID  string `json:"iface_id"`
			Tap string `json:"host_dev_name"`
		} `json:"network_overrides"`
	}
	if err := decode(body, &b, "snapshot_path", "mem_backend"); err != nil {
		return err
	}
	c, err := readState(b.State)
	if err != nil {
		return brokenLoad{err}
	}
	for _, n := range b.Network {
		found := false
		for i := range c.Networks {
			if c.Networks[i].ID == n.ID {
				c.Networks[i].Tap, found = n.Tap, true
			}
		}
		if !found {
			return brokenLoad{fault("there is no network interface " + n.ID)}
		}
	}
	for _, d := range c.Drives {
		if err := d.open(); err != nil {
			return brokenLoad{err}
		}
	}
	for _, n := range c.Networks {
		if err := n.open(); err != nil {
			return brokenLoad{err}
		}
	}
	v.config = c
	if err := v.loadMemory(b.Memory.Type, b.Memory.Path); err != nil {
		return brokenLoad{err}
	}
	if err := v.listen(); err != nil {
		return brokenLoad{err}
	}
	v.state = paused
	if b.Resume {
		v.resume()
	}
	return nil
}

func (v *double) loadMemory(kind, path string) (err error) {
	size := v.config.MemoryMiB * mib
	switch kind {
	case "File":
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if info.Size() < int64(size) {
			return errors.New("the memory file is too short")
		}
		v.guest.memory, err = memtest.MapFile(path, size)
		return err
	case "Uffd":
		if v.guest.memory, err = memtest.Map(size); err != nil {
			return err
		}
		// In two regions, as memory beside a gap for devices is.
		half := size / 2
		if err := memtest.HandOver(memtest.Offer{Socket: path, Memory: v.guest.memory, Parts: [][]byte{v.guest.memory[:half], v.guest.memory[half:]}}); err != nil {
			return err
		}
		// Devices look at their queues.
		if [8]byte(v.guest.memory) == [8]byte{} {
			return errors.New("the memory is of another guest")
		}
		return nil
	}
	return fault("the type of memory is unknown: " + kind)
}
