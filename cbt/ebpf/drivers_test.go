package ebpf

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/failback/failback/cbt"
	"github.com/failback/failback/internal/sysfs"
)

// Devices that only some kernels have.

// mapper is a device-mapper device over a loop device.
type mapper struct{ device, below, name string }

// Where it begins on the device below, in bytes.
const mapperStart = 1 << 20

func newMapper(t *testing.T, size int64) *mapper {
	t.Helper()
	needKernel(t)
	needTool(t, "dmsetup")
	if _, err := os.Stat("/sys/class/misc/device-mapper"); err != nil {
		t.Skip("needs device-mapper in this kernel")
	}
	m := &mapper{below: newLoop(t, makeFile(t, scratch(t)+"/below", mapperStart+size), 0), name: fmt.Sprintf("failback-%d-%d", os.Getpid(), rand.Uint32())}
	m.device = "/dev/mapper/" + m.name
	m.run(t, "create", "--table", fmt.Sprintf("0 %d linear %s %d", size/sector, m.below, mapperStart/sector))
	m.lasts(t)
	return m
}

// lasts has the device removed when the test ends, and its writes counted as long
// as it lasts: before Linux 6.5 the switch is off at first.
func (m *mapper) lasts(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		if !until(t, 5*second, func() bool { return m.dmsetup("remove") == nil }) {
			t.Errorf("%s stays", m.device)
		}
	})
	d, err := lookDevice(m.device)
	if err != nil {
		t.Fatal(err)
	}
	setStats(t, d.dir, true)
}

func (m *mapper) dmsetup(verb string, args ...string) error {
	cmd := exec.Command("dmsetup", append([]string{verb, m.name, "--noudevrules", "--noudevsync"}, args...)...)
	cmd.Env = append(os.Environ(), "DM_DISABLE_UDEV=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("dmsetup %s: %w: %s", verb, err, out)
	}
	return nil
}

func (m *mapper) run(t testing.TB, verb string, args ...string) {
	t.Helper()
	if err := m.dmsetup(verb, args...); err != nil {
		t.Fatal(err)
	}
}

// heldWrite starts a write of block 3 while the device is suspended; resume lets
// it land.
func (m *mapper) heldWrite(t *testing.T) (resume func()) {
	t.Helper()
	f := openFile(t, m.device, os.O_RDWR|unixDirect)
	m.run(t, "suspend", "--noflush", "--nolockfs")
	held := true
	ended := make(chan error, 1)
	go func() { // ends when the device is resumed
		_, err := f.WriteAt(aligned(int(cbt.MinBlock)), 3*cbt.MinBlock)
		ended <- err
	}()
	resume = func() {
		t.Helper()
		if !held {
			return
		}
		held = false
		if err := errors.Join(m.dmsetup("resume"), <-ended); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(resume)
	return resume
}

// The race of session.go, of a device that is not driven by requests.
func TestInFlightOfBios(t *testing.T) {
	for _, marked := range []bool{true, false} {
		t.Run(map[bool]string{true: "Marked", false: "Unmarked"}[marked], func(t *testing.T) {
			m := newMapper(t, 4<<20)
			tr := sealed(t, m.device, Options{}, 2)
			if tr.request {
				t.Fatal("it is driven by requests")
			}
			mustPutBack(t, tr, mustTake(t, tr, 2), all(tr))
			resume := m.heldWrite(t)
			if !until(t, 10*second, func() bool { return mustStatus(t, tr).Writes > 0 }) {
				t.Fatal("the write was not queued")
			}
			taken := mustTake(t, tr, 2)
			if got := taken.Extents(); !slices.Equal(got, []cbt.Extent{block(3)}) {
				t.Fatalf("took %v, want the write that is under way", got)
			}
			mustPutBack(t, tr, taken, all(tr))
			if !marked {
				unarm(t, tr)
			}
			resume()
			if got := slices.Contains(mustMap(t, tr).Extents(), block(3)); got != marked {
				t.Errorf("the write that landed late is in the map: %v, want %v", got, marked)
			}
			if n := tr.rec.get(offStrangers); n != 0 {
				t.Errorf("%d strangers, want none", n)
			}
		})
	}
}

// A write that was queued before the session came ends as a stranger.
func TestStrangerOfBios(t *testing.T) {
	m := newMapper(t, 4<<20)
	tr := sealed(t, m.device, Options{}, 2)
	resume := m.heldWrite(t)
	if !until(t, 10*second, func() bool { return mustStatus(t, tr).Writes > 0 }) {
		t.Fatal("the write was not queued")
	}
	mustPutBack(t, tr, mustTake(t, tr, 2), all(tr))
	resume()
	if got := mustMap(t, tr).Extents(); !slices.Equal(got, []cbt.Extent{block(3)}) {
		t.Errorf("the map after a stranger has %v, want all that the session had", got)
	}
	taken := mustTake(t, tr, 2)
	if got := taken.Extents(); !slices.Equal(got, []cbt.Extent{block(3)}) {
		t.Errorf("took %v after a stranger, want all that the session had", got)
	}
	mustPutBack(t, tr, taken)
}

// A stop right after the stranger reports it, too.
func TestStrangerBeforeStop(t *testing.T) {
	m := newMapper(t, 4<<20)
	tr := sealed(t, m.device, Options{}, 2)
	resume := m.heldWrite(t)
	if !until(t, 10*second, func() bool { return mustStatus(t, tr).Writes > 0 }) {
		t.Fatal("the write was not queued")
	}
	mustPutBack(t, tr, mustTake(t, tr, 2), all(tr))
	resume()
	last, err := tr.Stop()
	if err != nil || !slices.Equal(last.Extents(), []cbt.Extent{block(3)}) {
		t.Errorf("the last map after a stranger: %+v, %v", last, err)
	}
}

func TestLateDiscardOfBios(t *testing.T) {
	m := newMapper(t, 1<<20)
	held := false
	resume := func() {
		if held {
			held = false
			m.run(t, "resume")
		}
	}
	t.Cleanup(resume)
	lateDiscard(t, sealed(t, m.device, Options{}, 2), func() {
		m.run(t, "suspend", "--noflush", "--nolockfs")
		held = true
	}, resume)
}

// A suspended device is not quiet though nothing is in flight.
func TestSuspended(t *testing.T) {
	m := newMapper(t, 4<<20)
	resume := m.heldWrite(t)
	tr := start(t, m.device, Options{})
	if err := tr.Seal(2); !errors.Is(err, errUndrained) {
		t.Errorf("sealed a suspended device: %v", err)
	}
	resume()
	if err := errors.Join(tr.Drain(t.Context()), tr.Seal(2)); err != nil {
		t.Error(err)
	}
}

// The device below sees what is written through the one on top.
func TestBelow(t *testing.T) {
	m := newMapper(t, 4<<20)
	tr := sealed(t, m.below, Options{}, 2)
	writeDirect(t, openFile(t, m.device, os.O_RDWR|unixDirect), 8192, 4096, 1)
	at := cbt.Extent{Off: mapperStart + 8192, End: mapperStart + 12288}
	if got := mustMap(t, tr).Extents(); !slices.Equal(got, []cbt.Extent{at}) {
		t.Errorf("the device below reports %v, want %v", got, at)
	}
}

// A replica of a device-mapper device, kept equal while it is written.
func TestTortureOfMapper(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes where a processor is emulated: not with -short")
	}
	torture(t, newMapper(t, tortureSize).device)
}

// A zoned device is refused.
func TestZoned(t *testing.T) {
	needKernel(t)
	files, _ := filepath.Glob("/sys/block/*/queue/zoned")
	for _, f := range files {
		if sysfs.Attr(f) == "none" {
			continue
		}
		device := "/dev/" + strings.Split(f, "/")[3]
		_, err := Start(t.Context(), device, Options{FS: ownFS(t)})
		if refused := (*RefusedError)(nil); !errors.As(err, &refused) || !strings.Contains(refused.Reason, "zoned") {
			t.Errorf("start %s: %v", device, err)
		}
		return
	}
	t.Skip("needs a zoned device, such as null_blk with zoned=1")
}

// A command that is passed through to the disk is no write that could be marked.
func TestPassthrough(t *testing.T) {
	needKernel(t)
	device := ""
	models, _ := filepath.Glob("/sys/block/sd*/device/model")
	for _, f := range models {
		if sysfs.Attr(f) == "scsi_debug" {
			device = "/dev/" + strings.Split(f, "/")[3]
		}
	}
	if device == "" {
		t.Skip("needs the scsi_debug module, and a disk of it that may be overwritten")
	}
	tr := sealed(t, device, Options{}, 2)
	f := openFile(t, device, os.O_RDWR)
	data, command := aligned(sector), []byte{0x2a, 0, 0, 0, 0, 9, 0, 0, 1, 0} // WRITE(10) of sector 9
	header := struct {                                                        // struct sg_io_hdr
		id, direction           int32
		commandLen, senseLen    uint8
		vectors                 uint16
		dataLen                 uint32
		data, command, sense    unsafe.Pointer
		timeout, flags          uint32
		pack                    int32
		user                    unsafe.Pointer
		status, masked, message uint8
		senseWritten            uint8
		host, driver            uint16
		residue                 int32
		duration, info          uint32
	}{id: 'S', direction: -2, commandLen: uint8(len(command)), dataLen: sector, data: unsafe.Pointer(&data[0]), command: unsafe.Pointer(&command[0]), timeout: 5000}
	pass := func() {
		t.Helper()
		if err := ioctlPointer(f, 0x2285, unsafe.Pointer(&header)); err != nil || header.status != 0 {
			t.Fatalf("SG_IO: %v, status %#x", err, header.status)
		}
	}
	pass()
	wantLost(t, tr, "written: 1 are counted")
	// While a session reads it is counted as it ends, too: it may have begun before.
	if err := tr.Seal(3); err != nil {
		t.Fatal(err)
	}
	mustPutBack(t, tr, mustTake(t, tr, 3))
	pass()
	if n := mustStatus(t, tr).Passthrough; n != 3 {
		t.Errorf("%d are counted, want 3: one that has begun and ended in a session counts twice", n)
	}
}

// Other drivers: one of requests that end in timers, one of bios that end at once.
func TestTortureOfOthers(t *testing.T) {
	needKernel(t)
	if testing.Short() {
		t.Skip("takes minutes where a processor is emulated: not with -short")
	}
	found := false
	for _, name := range []string{"nullb0", "ram0"} {
		if d, err := lookDevice("/dev/" + name); err == nil && d.sectors*sector >= tortureSize {
			found = true
			setStats(t, d.path, true) // the RAM disk has them off
			t.Run(name, func(t *testing.T) { torture(t, d.path) })
		}
	}
	if !found {
		t.Skip("needs null_blk (memory_backed) or brd, with 64 MiB at least")
	}
}

// An end that passed the program by leaves the write with what is remembered, and
// the next bio at its address tells that it has ended.
func TestReusedBio(t *testing.T) {
	needKernel(t)
	disk := newZram(t, 4<<20)
	tr := sealed(t, disk, Options{}, 2)
	mustPutBack(t, tr, mustTake(t, tr, 2), all(tr)) // arms
	// Only the end of writes marks, and nobody looks at it.
	tr.k.leave(tr.number)
	if err := os.Remove(tr.sessionDir() + "/mark_bio"); err != nil {
		t.Fatal(err)
	}
	inflight, err := ebpf.LoadPinnedMap(tr.inflightPin(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer inflight.Close()
	places := func() map[uint64]cbt.Extent { // by the address of a bio
		all := map[uint64]cbt.Extent{}
		var key uint64
		var at [2]uint64
		for next := inflight.Iterate(); next.Next(&key, &at); {
			all[key] = cbt.Extent{Off: int64(at[0]) * sector, End: int64(at[1]) * sector}
		}
		return all
	}
	f := openFile(t, disk, os.O_RDWR|unixDirect)
	if !until(t, 10*second, func() bool { // the program goes a little later than its pin
		writeDirect(t, f, 0, 4096, 1)
		return len(places()) > 0
	}) {
		t.Fatal("no write is remembered")
	}
	var want []cbt.Extent
	for i := int64(1); i < 1000 && len(want) < 4; i++ {
		before := places()
		writeDirect(t, f, i*cbt.MinBlock, 4096, 1)
		for bio, at := range places() {
			if was, ok := before[bio]; ok && was != at {
				want = append(want, was)
			}
		}
	}
	if len(want) == 0 {
		t.Skip("needs a kernel that uses the memory of bios again soon")
	}
	first := []cbt.Extent{block(0)} // of which the end was seen, or not
	got := cbt.Subtract(mustMap(t, tr).Extents(), first)
	if want = cbt.Subtract(cbt.Normalize(want), first); !slices.Equal(got, want) {
		t.Errorf("writes are known to have ended at %v, want %v", got, want)
	}
	if err := tr.k.enter(tr.number, kernelNumber(tr.rec.get32(offDisk))); err != nil {
		t.Fatal(err)
	}
}
