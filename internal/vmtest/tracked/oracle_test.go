package tracked

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/cbt/ebpf"
	"golang.org/x/sys/unix"
)

// The oracle: two full copies of a device, read around the page cache, before
// and after real work. Every 4 KiB block in which they differ is in the map (L1).

func TestOracle(t *testing.T) {
	eachVolume(t, func(t *testing.T, v volume) {
		v.filled(t)
		o := oracle{t: t, volume: v, tr: track(t, v, ownFS(t)), rng: rand.New(rand.NewPCG(5, 8))}
		o.shows("random writes of three processes", o.processes)
		o.shows("mkfs.ext4, files, fstrim", o.fileSystem)
		o.shows("dd to a partition of it", o.partition)
	})
}

type oracle struct {
	volume
	t        *testing.T
	tr       *ebpf.Tracker
	rng      *rand.Rand
	reported []cbt.Extent
}

// shows does some work, asks for what was written, and compares it with what
// differs. The work returns why it was not done.
func (o *oracle) shows(what string, work func() (lacks string)) {
	o.t.Helper()
	o.reported = nil
	o.take() // what is left of the work before
	o.reported = nil
	before := o.copy(o.t)
	if lacks := work(); lacks != "" {
		o.t.Logf("%s: not shown: %s", what, lacks)
		return
	}
	o.take()
	after := o.copy(o.t)
	var changed []cbt.Extent
	for off := int64(0); off < o.size; off += block {
		end := min(off+block, o.size)
		if !bytes.Equal(before[off:end], after[off:end]) {
			changed = append(changed, cbt.Extent{Off: off, End: end})
		}
	}
	changed = cbt.Normalize(changed)
	if len(changed) == 0 {
		o.t.Fatalf("%s: nothing changed", what)
	}
	missed := cbt.Subtract(changed, o.reported)
	if len(missed) > 0 {
		o.t.Errorf("%s: missed %d of %d bytes that changed, the first at %v (L1)", what, cbt.Total(missed), cbt.Total(changed), missed[0])
	}
	if trust := o.tr.Trust(); trust.Lost != "" {
		o.t.Errorf("%s: lost: %s", what, trust.Lost)
	}
	o.t.Logf("%s: missed %d of %d blocks, reported %.2f times as many", what, cbt.Total(missed)/block, cbt.Total(changed)/block, float64(cbt.Total(o.reported))/float64(cbt.Total(changed)))
}

// take adds to what was reported, and has it proven.
func (o *oracle) take() {
	o.t.Helper()
	taken, err := o.tr.Take(o.t.Context(), epoch)
	if err != nil {
		o.t.Fatal(err)
	}
	got := taken.Extents()
	o.reported = cbt.Union(o.reported, got)
	if err := o.tr.PutBack(taken, got); err != nil {
		o.t.Fatal(err)
	}
}

// processes has others write, while some of it is taken.
func (o *oracle) processes() string {
	o.t.Helper()
	ended := make(chan error)
	for i := range writers {
		c := exec.CommandContext(o.t.Context(), os.Args[0], "-test.run", "^TestWriter$")
		c.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", writerPlan, o.path, i))
		go func() {
			out, err := c.CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			ended <- err
		}()
	}
	for left := writers; left > 0; {
		select {
		case err := <-ended:
			if left--; err != nil {
				o.t.Error(err)
			}
		default:
			o.take()
		}
	}
	return ""
}

// writers is how many processes write.
const writers = 3

// writerPlan is what a process of TestOracle is told in its environment.
const writerPlan = "FAILBACK_SCRATCH_WRITER"

// TestWriter is no test of its own: it is a process that TestOracle starts.
func TestWriter(t *testing.T) {
	plan := os.Getenv(writerPlan)
	if plan == "" {
		t.Skip("started by TestOracle")
	}
	var path string
	var seed uint64
	if _, err := fmt.Sscan(plan, &path, &seed); err != nil {
		t.Fatal(err)
	}
	v, rng := look(t, path), rand.New(rand.NewPCG(seed, 3))
	direct, cached := open(t, path, os.O_RDWR|unix.O_DIRECT), open(t, path, os.O_RDWR)
	p := aligned(64 << 10)
	half := v.size / 2 / block * block
	part := half / writers / block * block
	for i := range 150 {
		// Each half in a way of its own, for where direct and cached writes meet the
		// kernel reports an error; and in a part of its own, see replica.write.
		n := block * (1 + rng.Int64N(16))
		off := int64(seed)*part + rng.Int64N((part-n)/block)*block
		var err error
		switch x := rng.IntN(20); {
		case x < 11:
			noise(rng, p[:n])
			_, err = direct.WriteAt(p[:n], off)
		case x < 17:
			noise(rng, p)
			skip := rng.Int64N(1000)
			_, err = cached.WriteAt(p[:1+rng.Int64N(n-skip)], half+off+skip)
		case x < 19 && v.unit > 0:
			err = ioctlRange(cached, unix.BLKDISCARD, off, n)
		default:
			err = ioctlRange(cached, unix.BLKZEROOUT, off, n)
		}
		if i%25 == 24 {
			err = errors.Join(err, cached.Sync())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := cached.Sync(); err != nil {
		t.Fatal(err)
	}
}

// fileSystem makes one, works in it, and trims it.
func (o *oracle) fileSystem() string {
	o.t.Helper()
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		return "needs mkfs.ext4"
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", o.path).CombinedOutput(); err != nil {
		o.t.Fatalf("mkfs.ext4 %s: %v: %s", o.path, err, out)
	}
	dir := o.t.TempDir()
	trimmed := "nothing to trim"
	for _, options := range []string{"", "discard"} {
		if err := unix.Mount(o.path, dir, "ext4", 0, options); err != nil {
			o.t.Fatalf("mount %s: %v", o.path, err)
		}
		o.files(dir)
		if n, err := trim(dir); err == nil {
			trimmed = fmt.Sprintf("%d MiB trimmed", n>>20)
		}
		var err error
		if !until(o.t, func() bool { err = unix.Unmount(dir, 0); return !errors.Is(err, unix.EBUSY) }) || err != nil {
			o.t.Fatalf("unmount %s: %v", o.path, err)
		}
	}
	o.t.Log(trimmed)
	return ""
}

// files makes, changes and removes files, and writes back all of it.
func (o *oracle) files(dir string) {
	o.t.Helper()
	for i := range 60 {
		path := filepath.Join(dir, fmt.Sprint(o.rng.IntN(40)))
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			o.t.Fatal(err)
		}
		p := make([]byte, 1+o.rng.IntN(200<<10))
		noise(o.rng, p)
		_, err = f.WriteAt(p, o.rng.Int64N(64<<10))
		switch i % 5 {
		case 0:
			err = errors.Join(err, f.Sync())
		case 1:
			err = errors.Join(err, f.Truncate(o.rng.Int64N(100<<10)))
		case 2:
			err = errors.Join(err, f.Sync(), os.Remove(path))
		}
		if err := errors.Join(err, f.Close()); err != nil {
			o.t.Fatal(err)
		}
	}
	d := open(o.t, dir, os.O_RDONLY)
	if err := errors.Join(unix.Syncfs(int(d.Fd())), d.Close()); err != nil {
		o.t.Fatal(err)
	}
}

// trim discards what a file system does not use, and returns how many bytes.
func trim(dir string) (int64, error) {
	d, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	const fiTrim = 0xc0185879
	all := [3]uint64{0, 1 << 62, 0} // struct fstrim_range
	err = ioctl(d, fiTrim, unsafe.Pointer(&all))
	return int64(all[1]), err
}

// partition makes one on the device and writes it as dd does.
func (o *oracle) partition() string {
	o.t.Helper()
	const number, start, size = 1, 8<<20 + block, 6 << 20
	if err := editPartition(o.path, unix.BLKPG_ADD_PARTITION, number, start, size); err != nil {
		return fmt.Sprintf("it has no partitions (%v)", err)
	}
	defer func() {
		if !until(o.t, func() bool { return editPartition(o.path, unix.BLKPG_DEL_PARTITION, number, 0, 0) == nil }) {
			o.t.Errorf("the partition of %s stays", o.path)
		}
	}()
	part := o.path + "1"
	if last := o.path[len(o.path)-1]; strings.ContainsRune("0123456789", rune(last)) {
		part = o.path + "p1"
	}
	if !until(o.t, func() bool { _, err := os.Stat(part); return err == nil }) {
		return "nobody makes " + part
	}
	f := open(o.t, part, os.O_RDWR)
	p := make([]byte, 3<<20)
	noise(o.rng, p)
	_, err := f.WriteAt(p, block+512)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		o.t.Fatal(err)
	}
	return ""
}

func editPartition(disk string, op, number int32, start, size int64) error {
	f, err := os.Open(disk)
	if err != nil {
		return err
	}
	defer f.Close()
	part := struct {
		start, length int64
		pno           int32
		_             [132]byte
	}{start: start, length: size, pno: number}
	arg := struct {
		op, flags, datalen int32
		data               unsafe.Pointer
	}{op: op, datalen: int32(unsafe.Sizeof(part)), data: unsafe.Pointer(&part)}
	return ioctl(f, unix.BLKPG, unsafe.Pointer(&arg))
}
