package ebpf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/internal/looptest"
	"golang.org/x/sys/unix"
)

// The oracle: two full copies of the device, read around the page cache, before
// and after real work. Every 4 KiB block in which they differ must be reported.
// Some of the work is reported by takes on the way, as a session does.

const oracleSize = 352 << 20 // bytes; XFS wants 300 MiB at least

func TestOracle(t *testing.T) {
	t.Parallel()
	needKernel(t)
	if testing.Short() {
		t.Skip("reads and writes some GiB: not with -short")
	}
	devices := map[string]func(testing.TB) string{
		"loop": func(t testing.TB) string {
			return newLoop(t, makeFile(t, scratch(t)+"/disk", oracleSize), unix.LO_FLAGS_PARTSCAN)
		},
		"zram": func(t testing.TB) string { return newZram(t, oracleSize) },
		"partition": func(t testing.TB) string {
			_, parts := newPartitioned(t, 1<<20, oracleSize)
			return parts[1]
		},
	}
	for _, name := range []string{"loop", "zram", "partition"} {
		for _, kind := range []string{"ext4", "xfs", "btrfs"} {
			if name == "partition" && kind != "ext4" {
				continue // the arithmetic does not depend on it
			}
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				oracle(t, devices[name](t), kind)
			})
		}
	}
}

// oracle works on a device with a file system and asks what was reported.
func oracle(t *testing.T, device, kind string) {
	dir := mkfs(t, device, kind)
	o := &oracleRun{t: t, device: device, tr: sealed(t, device, Options{}, 2), rng: rand.New(rand.NewPCG(uint64(len(device)), 7))}
	syncFS(t, dir)
	before := o.copy()
	o.files(dir, 200)
	o.take(false)
	o.files(dir, 100)
	o.take(true)
	unmount(t, dir)
	dir = mountOn(t, device, kind)
	o.files(dir, 100)
	mustRun(t, "fstrim", dir)
	o.take(true)
	unmount(t, dir)
	o.raw()
	o.check("work on "+kind, before)

	before = o.copy()
	o.reported, o.dirty = nil, nil
	other := map[string]string{"ext4": "xfs", "xfs": "btrfs", "btrfs": "ext4"}[kind]
	dir = mkfs(t, device, other)
	o.files(dir, 50)
	unmount(t, dir)
	o.check("mkfs of "+other+" over it", before)
}

type oracleRun struct {
	t        *testing.T
	device   string
	tr       *Tracker
	rng      *rand.Rand
	reported []cbt.Extent
	dirty    []cbt.Extent // of it
}

// copy reads the device from the medium.
func (o *oracleRun) copy() []byte {
	o.t.Helper()
	p := aligned(oracleSize)
	if _, err := io.ReadFull(openFile(o.t, o.device, os.O_RDONLY|unixDirect), p); err != nil {
		o.t.Fatal(err)
	}
	return p
}

// take adds to what was reported; it is proven, or comes back.
func (o *oracleRun) take(proven bool) {
	o.t.Helper()
	taken := mustTake(o.t, o.tr, 2)
	got := taken.Extents()
	if proven {
		o.reported = cbt.Union(o.reported, got)
		for r := range taken.Runs() {
			if r.State == cbt.Dirty {
				o.dirty = append(o.dirty, r.Extent)
			}
		}
		mustPutBack(o.t, o.tr, taken, got...)
	} else {
		mustPutBack(o.t, o.tr, taken)
	}
}

// check wants every difference since before to be reported.
func (o *oracleRun) check(what string, before []byte) {
	o.t.Helper()
	after := o.copy()
	o.take(true)
	var changed []cbt.Extent
	for off := int64(0); off < oracleSize; off += cbt.MinBlock {
		if !bytes.Equal(before[off:off+cbt.MinBlock], after[off:off+cbt.MinBlock]) {
			changed = append(changed, cbt.Extent{Off: off, End: off + cbt.MinBlock})
		}
	}
	changed = cbt.Normalize(changed)
	missed := cbt.Subtract(changed, o.reported)
	if len(changed) == 0 || len(missed) > 0 {
		o.t.Errorf("%s: missed %d bytes of %d that changed: %v", what, cbt.Total(missed), cbt.Total(changed), missed)
	}
	if trust := o.tr.Trust(); trust.Lost != "" {
		o.t.Errorf("%s: lost: %s", what, trust.Lost)
	}
	s := mustStatus(o.t, o.tr)
	dirty := cbt.Total(cbt.Normalize(o.dirty))
	o.t.Logf("%s: missed %d of %d blocks that changed; reported %.2f times as many, %.2f dirty and %d blocks discarded; %d writes so far, %d of them discards",
		what, cbt.Total(missed)>>12, cbt.Total(changed)>>12, float64(cbt.Total(o.reported))/float64(cbt.Total(changed)), float64(dirty)/float64(cbt.Total(changed)), (cbt.Total(o.reported)-dirty)>>12, s.Writes, s.Discards)
}

// files makes, changes and removes files in many ways.
func (o *oracleRun) files(dir string, n int) {
	o.t.Helper()
	must := func(err error) {
		o.t.Helper()
		if err != nil {
			o.t.Fatal(err)
		}
	}
	for i := range n {
		path := filepath.Join(dir, fmt.Sprint(i%7), fmt.Sprint(o.rng.IntN(n)))
		must(os.MkdirAll(filepath.Dir(path), 0o755))
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		must(err)
		p := make([]byte, 1+o.rng.IntN(400<<10))
		for k := 0; k < len(p); k += 8 {
			p[k] = byte(o.rng.Uint32())
		}
		_, err = f.WriteAt(p, o.rng.Int64N(64<<10))
		must(err)
		switch o.rng.IntN(6) {
		case 0:
			must(f.Sync())
		case 1:
			must(f.Truncate(o.rng.Int64N(100 << 10)))
		case 2:
			_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 8<<10, 64<<10) // not everywhere
		case 3:
			must(os.Remove(path))
		case 4:
			must(os.Rename(path, path+"-moved"))
		}
		must(f.Close())
	}
	o.direct(filepath.Join(dir, "random"))
	syncFS(o.t, dir)
}

func syncFS(t *testing.T, dir string) {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		t.Fatal(err)
	}
}

// direct writes a file at random places, around the page cache.
func (o *oracleRun) direct(path string) {
	o.t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unixDirect, 0o600)
	if err != nil {
		o.t.Fatal(err)
	}
	defer f.Close()
	for range 300 {
		writeDirect(o.t, f, o.rng.Int64N(4<<10)<<12, 4096<<o.rng.IntN(5), byte(1+o.rng.IntN(255)))
	}
}

// raw writes the device itself, as dd does, also through a partition of it, and
// discards and zeroes parts.
func (o *oracleRun) raw() {
	o.t.Helper()
	f := openFile(o.t, o.device, os.O_RDWR)
	if part, err := looptest.TryPartition(o.t, o.device, 7, 64<<20+4096, 8<<20); err == nil {
		p := openFile(o.t, part, os.O_RDWR)
		if _, err := p.WriteAt(bytes.Repeat([]byte("dd"), 3<<20), 4096+512); err != nil {
			o.t.Fatal(err)
		}
		if err := errors.Join(p.Sync(), p.Close()); err != nil {
			o.t.Fatal(err)
		}
	} else {
		o.t.Logf("no partition on %s: %v", o.device, err)
	}
	for range 200 {
		off := o.rng.Int64N(oracleSize - 1<<20)
		p := bytes.Repeat([]byte{byte(1 + o.rng.IntN(255))}, 1+o.rng.IntN(100<<10))
		if _, err := f.WriteAt(p, off); err != nil {
			o.t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		o.t.Fatal(err)
	}
	if err := discardRange(f, 96<<20, 30<<20); err != nil {
		o.t.Fatal(err)
	}
	if err := ioctlRange(f, unix.BLKZEROOUT, 140<<20+8192, 5<<20); err != nil {
		o.t.Fatal(err)
	}
}
