package media

import (
	"container/list"
	"sync"
)

const (
	blockBytes = 256 << 10
	// cacheBlocks bounds what one remote Source keeps: 16 MiB.
	cacheBlocks = 64
	// fetchBlocks bounds one request: 4 MiB.
	fetchBlocks = 16
)

// blockCache keeps the blocks of an input that were used last.
type blockCache struct {
	mu     sync.Mutex
	blocks map[int64]*list.Element
	recent *list.List // of block, the one used last in front
}

type block struct {
	index int64
	data  []byte
}

func newBlockCache() *blockCache {
	return &blockCache{blocks: map[int64]*list.Element{}, recent: list.New()}
}

func (c *blockCache) get(index int64) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.blocks[index]
	if !ok {
		return nil, false
	}
	c.recent.MoveToFront(e)
	return e.Value.(block).data, true
}

// put keeps data, which must not be changed any more.
func (c *blockCache) put(index int64, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.blocks[index]; ok {
		return
	}
	c.blocks[index] = c.recent.PushFront(block{index, data})
	for c.recent.Len() > cacheBlocks {
		oldest := c.recent.Remove(c.recent.Back()).(block)
		delete(c.blocks, oldest.index)
	}
}

// readAt fills p from off, which lies inside an input of size bytes. Blocks
// that are missing are fetched, neighbours by one request.
func (c *blockCache) readAt(p []byte, off, size int64, fetch func([]byte, int64) error) error {
	for len(p) > 0 {
		index := off / blockBytes
		data, ok := c.get(index)
		if !ok {
			end := index + 1
			for end*blockBytes < off+int64(len(p)) && end-index < fetchBlocks {
				if _, ok := c.get(end); ok {
					break
				}
				end++
			}
			start := index * blockBytes
			buf := make([]byte, min(end*blockBytes, size)-start)
			if err := fetch(buf, start); err != nil {
				return err
			}
			c.split(index, buf)
			data = buf
		}
		n := copy(p, data[off-index*blockBytes:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// split keeps the blocks that buf, which starts with block index, is made of.
func (c *blockCache) split(index int64, buf []byte) {
	for len(buf) > 0 {
		n := min(len(buf), blockBytes)
		// A copy each: a block must not keep its neighbours in memory.
		c.put(index, append([]byte(nil), buf[:n]...))
		index, buf = index+1, buf[n:]
	}
}
