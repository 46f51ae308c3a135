package guest

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
)

const (
	blockBytes = 4 << 10
	inodeBytes = 256
	// minBlocks is the least that mke2fs makes a sensible file system of.
	minBlocks = 256
	// uuid is that of every image, as its content is what tells it apart.
	uuid = "766f6c6c-6579-4e00-8000-000000000000"
)

// makeExt4 makes an image of an ext4 file system with the files of dir that is
// as small as they allow. It has no journal, because nobody writes to it.
func makeExt4(ctx context.Context, path, dir string) error {
	blocks, inodes, err := measure(dir)
	if err != nil {
		return err
	}
	// Room for the tables of inodes and of block groups, and for extents.
	inodes += 16
	blocks += inodes*inodeBytes/blockBytes + blocks/64 + minBlocks
	return run(ctx, "e2fsprogs", "mke2fs", "-q", "-F", "-t", "ext4", "-b", strconv.Itoa(blockBytes), "-I", strconv.Itoa(inodeBytes),
		"-N", strconv.FormatInt(inodes, 10), "-m", "0", "-U", uuid, "-L", "volley",
		"-O", "^has_journal,^resize_inode,^metadata_csum,^64bit,^huge_file,^metadata_csum_seed,^orphan_file",
		"-E", "hash_seed="+uuid+",root_owner=0:0,lazy_itable_init=0,nodiscard", "-d", dir, path, strconv.FormatInt(blocks, 10))
}

// measure returns how many blocks and inodes the files of a directory need.
func measure(dir string) (blocks, inodes int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		inodes++
		switch info.Mode().Type() {
		case 0, fs.ModeDir:
			blocks += (info.Size() + blockBytes - 1) / blockBytes
			if info.IsDir() {
				blocks++
			}
		case fs.ModeSymlink:
			blocks++
		case fs.ModeSocket:
			return fmt.Errorf("%s is a socket, which no image can have", path)
		}
		return nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("measure %s: %w", dir, err)
	}
	return blocks, inodes, nil
}

// Function returns what a function of package type Zip boots: dir has its code,
// packages are Debian packages beyond its runtime.
func (b *Builder) Function(ctx context.Context, runtime, dir string, packages ...string) (Image, error) {
	kernel, err := b.Kernel(ctx)
	if err != nil {
		return Image{}, err
	}
	root, err := b.Runtime(ctx, runtime, packages...)
	if err != nil {
		return Image{}, err
	}
	code, err := b.Code(ctx, dir)
	if err != nil {
		return Image{}, err
	}
	return Image{Kernel: kernel.Image, Initrd: kernel.Initrd, Root: root, Code: code, CommandLine: CommandLine}, nil
}
