package ebpf

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/internal/looptest"
	"golang.org/x/sys/unix"
)

// Partition arithmetic, both ways: a disk sees what is written to its
// partitions, a partition sees its part and nothing of its neighbours.
func TestPartitions(t *testing.T) {
	needKernel(t)
	disk := newLoop(t, makeFile(t, scratch(t)+"/disk", 16<<20), unix.LO_FLAGS_PARTSCAN)
	one, two := looptest.Partition(t, disk, 1, 1<<20, 4<<20), looptest.Partition(t, disk, 2, 5<<20+4096, 4<<20+512)
	fs := ownFS(t)
	tracker := map[string]*Tracker{}
	for _, path := range []string{disk, one, two} {
		tracker[path] = sealed(t, path, Options{FS: fs}, 2)
	}
	write := func(path string, off int64, n int) {
		t.Helper()
		writeDirect(t, openFile(t, path, os.O_RDWR|unixDirect), off, n, 1)
	}
	want := func(what string, extents map[string][]cbt.Extent) {
		t.Helper()
		for path, tr := range tracker {
			taken := mustTake(t, tr, 2)
			if got := taken.Extents(); !slices.Equal(got, extents[path]) {
				t.Errorf("%s: %s reports %v, want %v", what, path, got, extents[path])
			}
			mustPutBack(t, tr, taken, all(tr))
			// The mark at the end of a write may come after the write is back.
			mustPutBack(t, tr, mustTake(t, tr, 2), all(tr))
		}
	}
	write(one, 8192, 4096)
	want("written to the first partition", map[string][]cbt.Extent{
		one: {{Off: 8192, End: 12288}}, disk: {{Off: 1<<20 + 8192, End: 1<<20 + 12288}},
	})
	write(disk, 1<<20, 512)
	want("written to the disk where the first partition begins", map[string][]cbt.Extent{
		one: {{Off: 0, End: 4096}}, disk: {{Off: 1 << 20, End: 1<<20 + 4096}},
	})
	write(disk, 1<<20-512, 512)
	want("written to the disk in front of it", map[string][]cbt.Extent{disk: {{Off: 1<<20 - 4096, End: 1 << 20}}})
	write(disk, 5<<20-4096, 12288)
	want("written to the disk across both", map[string][]cbt.Extent{
		one: {{Off: 4<<20 - 4096, End: 4 << 20}}, two: {{Off: 0, End: 4096}}, disk: {{Off: 5<<20 - 4096, End: 5<<20 + 8192}},
	})
	write(two, 4<<20, 512)
	want("written to the short last block of a partition", map[string][]cbt.Extent{
		two: {{Off: 4 << 20, End: 4<<20 + 512}}, disk: {{Off: 9<<20 + 4096, End: 9<<20 + 8192}},
	})
	// Of a partition that came when its disk was tracked already.
	three := looptest.Partition(t, disk, 3, 12<<20, 1<<20)
	write(three, 4096, 4096)
	want("written to a new partition", map[string][]cbt.Extent{disk: {{Off: 12<<20 + 4096, End: 12<<20 + 8192}}})

	stop(t, tracker[one])
	delete(tracker, one)
	write(two, 0, 4096)
	want("written when a neighbour is not tracked any more", map[string][]cbt.Extent{
		two: {{Off: 0, End: 4096}}, disk: {{Off: 5<<20 + 4096, End: 5<<20 + 8192}},
	})
}

// Partitions that the kernel finds in a table, as losetup -P has it do, where it
// can read one.
func TestPartitionTable(t *testing.T) {
	needKernel(t)
	disk, parts := newPartitioned(t, 4<<20, 4<<20)
	tr := sealed(t, parts[1], Options{}, 2)
	whole := sealed(t, disk, Options{}, 2)
	writeDirect(t, openFile(t, parts[0], os.O_RDWR|unixDirect), 0, 4096, 1)
	writeDirect(t, openFile(t, parts[1], os.O_RDWR|unixDirect), 8192, 4096, 1)
	if got := mustMap(t, tr).Extents(); !slices.Equal(got, []cbt.Extent{block(2)}) {
		t.Errorf("the partition reports %v", got)
	}
	if got, want := mustMap(t, whole).Extents(), []cbt.Extent{block(256), block(256 + 1024 + 2)}; !slices.Equal(got, want) {
		t.Errorf("the disk reports %v, want %v", got, want)
	}
	if s := mustStatus(t, tr); s.Device != parts[1] || s.Size != 4<<20 {
		t.Errorf("status %+v", s)
	}
}

// newPartitioned makes a disk with a table of partitions, the first at 1 MiB.
func newPartitioned(t testing.TB, sizes ...int64) (disk string, parts []string) {
	t.Helper()
	path := scratch(t) + "/disk"
	table := make([]byte, 512)
	table[510], table[511] = 0x55, 0xaa
	at := int64(1 << 20)
	for i, size := range sizes {
		entry := table[446+16*i:]
		entry[4] = 0x83 // Linux
		binary.LittleEndian.PutUint32(entry[8:], uint32(at/sector))
		binary.LittleEndian.PutUint32(entry[12:], uint32(size/sector))
		at += size
	}
	if err := os.WriteFile(path, table, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, at); err != nil {
		t.Fatal(err)
	}
	disk = newLoop(t, path, unix.LO_FLAGS_PARTSCAN)
	at = 1 << 20
	for i, size := range sizes {
		part := fmt.Sprintf("%sp%d", disk, i+1)
		if _, err := os.Stat("/sys/class/block/" + filepath.Base(part)); err != nil {
			t.Logf("this kernel reads no such table: %v", err)
			looptest.Partition(t, disk, i+1, at, size)
		}
		at += size
		if !until(t, 5*second, func() bool { _, err := os.Stat(part); return err == nil }) {
			t.Skipf("needs device nodes of partitions, no %s came", part)
		}
		parts = append(parts, part)
	}
	return disk, parts
}

// Two devices: starting and stopping the second does not touch the first.
func TestTwoDevices(t *testing.T) {
	needKernel(t)
	fs := ownFS(t)
	var paths []string
	var trackers []*Tracker
	for _, name := range []string{"/a", "/b"} {
		path := newLoop(t, makeFile(t, scratch(t)+name, 4<<20), 0)
		paths = append(paths, path)
		trackers = append(trackers, sealed(t, path, Options{FS: fs}, 2))
		writeDirect(t, openFile(t, paths[0], os.O_RDWR|unixDirect), 0, 4096, 1)
	}
	writeDirect(t, openFile(t, paths[1], os.O_RDWR|unixDirect), 4096, 4096, 1)
	if got := mustMap(t, trackers[0]).Extents(); !slices.Equal(got, []cbt.Extent{block(0)}) {
		t.Errorf("the first reports %v", got)
	}
	if got := mustMap(t, trackers[1]).Extents(); !slices.Equal(got, []cbt.Extent{block(1)}) {
		t.Errorf("the second reports %v", got)
	}
	list, err := List(Options{FS: fs})
	if err != nil || len(list) != 2 || list[0].Device != paths[0] || list[1].Dirty != 4096 {
		t.Errorf("list %+v, %v", list, err)
	}
	stop(t, trackers[1])
	writeDirect(t, openFile(t, paths[0], os.O_RDWR|unixDirect), 8192, 4096, 1)
	if got := mustMap(t, trackers[0]).Extents(); !slices.Equal(got, []cbt.Extent{block(0), block(2)}) {
		t.Errorf("the first reports %v after the second was stopped", got)
	}
}

// A discard of gigabytes is one request; whole blocks of it are discarded, the
// ends are dirty.
func TestLargeDiscard(t *testing.T) {
	needKernel(t)
	const size = 9 << 30
	path := newLoop(t, makeFile(t, scratch(t)+"/disk", size), 0)
	for _, block := range []int64{cbt.MinBlock, 64 << 10, cbt.MaxBlock} {
		tr := sealed(t, path, Options{Block: block}, 2)
		cut := min(block/2, cbt.MinBlock) // the kernel cuts a discard itself where its unit, a page here, is cut
		if err := discardRange(openFile(t, path, os.O_RDWR), cut, size-2*cut); err != nil {
			t.Fatal(err)
		}
		want := []cbt.Run{
			{Extent: cbt.Extent{Off: 0, End: block}, State: cbt.Dirty},
			{Extent: cbt.Extent{Off: block, End: size - block}, State: cbt.Discarded},
			{Extent: cbt.Extent{Off: size - block, End: size}, State: cbt.Dirty},
		}
		if got := slices.Collect(mustMap(t, tr).Runs()); !discardedLike(got, want) {
			t.Errorf("block %d: got %v, want %v", block, got, want)
		}
		stop(t, tr)
	}
}

// discardedLike compares runs, where the block layer may have cut a discard
// inside of a block: such a block is dirty.
func discardedLike(got, want []cbt.Run) bool {
	var dirty, covered int64
	for _, r := range got {
		covered += r.Len()
		if r.State == cbt.Dirty {
			dirty += r.Len()
		}
	}
	return covered == 9<<30 && got[0].Off == 0 && got[0].State == cbt.Dirty && len(got) > 2 && dirty <= 16*want[0].Len()
}
