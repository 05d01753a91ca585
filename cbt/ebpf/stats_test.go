package ebpf

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/failback/failback/cbt"
)

// A disk whose io statistics are off looks quiet while it is written.

func TestRestWithoutStats(t *testing.T) {
	f := newFrozen(t, newFreezer(t, 64<<20), 1<<20)
	f.withoutStats(t)
	tr := sealedUncounted(t, f.device, Options{})
	land := late(t, tr, f)
	ctx, cancel := context.WithTimeout(t.Context(), second/5)
	defer cancel()
	if err := tr.Rest(ctx); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "echo 1 > /sys/block/"+filepath.Base(f.device)+"/queue/iostats") {
		t.Errorf("rest: %v", err)
	}
	land()
	if got := mustMap(t, tr).Extents(); !slices.Contains(got, block(3)) {
		t.Errorf("the write that landed after Rest is not in the map: %v, %+v", got, tr.Trust())
	}
}

func TestStartWithoutStats(t *testing.T) {
	f := newFrozen(t, newFreezer(t, 64<<20), 1<<20)
	f.withoutStats(t)
	witness := sealedUncounted(t, f.device, Options{}) // the kernel does not tell when the write is queued
	f.freeze(t)
	v := &deviceVolume{f: openFile(t, f.device, os.O_RDWR)}
	ended := make(chan error, 1)
	go func() { // ends when the file system is thawed
		_, err := v.WriteAt([]byte("early"), 3*cbt.MinBlock)
		ended <- err
	}()
	if !until(t, 10*second, func() bool { return mustStatus(t, witness).Writes > 0 }) {
		t.Fatal("the write was not queued")
	}
	tr := sealedUncounted(t, f.device, Options{})
	f.thaw(t)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if got := mustMap(t, tr).Extents(); !slices.Contains(got, block(3)) {
		t.Errorf("the write queued before the start is not in the map: %v, %+v", got, tr.Trust())
	}
}

// sealedUncounted tracks a disk of requests whose statistics are off.
func sealedUncounted(t *testing.T, device string, o Options) *Tracker {
	t.Helper()
	tr := start(t, device, o)
	if s := mustStatus(t, tr); s.Drained || !s.Reading || !s.Uncounted {
		t.Errorf("started without statistics: %+v", s)
	}
	if err := tr.Seal(2); err != nil {
		t.Fatal(err)
	}
	return tr
}

// What was queued while they were off is not counted when they are on again, so
// once seen it is remembered, by other processes as well.
func TestStatsWereOff(t *testing.T) {
	needKernel(t)
	device := newLoop(t, makeFile(t, scratch(t)+"/disk", 4<<20), 0)
	fs := ownFS(t)
	rests := func(tr *Tracker, want bool) {
		t.Helper()
		if err := tr.Rest(t.Context()); errors.Is(err, ErrBusy) == want || err != nil && want {
			t.Errorf("rest: %v, want it to rest: %v", err, want)
		}
	}
	for _, when := range []string{"before the start", "before the take", "after the take"} {
		t.Run(when, func(t *testing.T) {
			off := func(now string) {
				if now == when {
					setStats(t, device, false)
				}
			}
			t.Cleanup(func() { setStats(t, device, true) })
			off("before the start")
			tr := start(t, device, Options{FS: fs})
			if err := tr.Seal(2); err != nil {
				t.Fatal(err)
			}
			off("before the take")
			mustPutBack(t, tr, mustTake(t, tr, 2))
			if off("after the take"); when == "after the take" {
				rests(tr, false)
			}
			setStats(t, device, true)
			rests(tr, false)
			if err := tr.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			tr, err := Open(device, Options{FS: fs})
			if err != nil {
				t.Fatal(err)
			}
			rests(tr, false)
			stop(t, tr)
			tr = sealed(t, device, Options{FS: fs}, 3)
			mustPutBack(t, tr, mustTake(t, tr, 3))
			rests(tr, true)
			if s := mustStatus(t, tr); s.Uncounted || s.Reading {
				t.Errorf("started anew: %+v", s)
			}
			stop(t, tr)
		})
	}
}

// An undrained start says what to do, and does not wait for what nobody can see.
func TestDrainWithoutStats(t *testing.T) {
	needKernel(t)
	device := newLoop(t, makeFile(t, scratch(t)+"/disk", 4<<20), 0)
	tr := start(t, device, Options{})
	tr.rec.set(offDrained, 0)
	setStats(t, device, false)
	defer setStats(t, device, true)
	for what, err := range map[string]error{"drain": tr.Drain(t.Context()), "seal": tr.Seal(2)} {
		if !errors.Is(err, errUndrained) || !strings.Contains(err.Error(), "/queue/iostats") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// What a driver of bios is believed, on a sysfs that is made up.
func TestStatsOfBios(t *testing.T) {
	dir := t.TempDir()
	sys := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text+"\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	sys("off/queue/iostats", "0")
	sys("on/queue/iostats", "1")
	sys("md7/queue/iostats", "1")
	for _, name := range []string{"zram7", "ram7"} { // they hold nothing; zram counts, whatever the switch says
		sys(name+"/queue/iostats", "0")
	}
	const both = uncountedStats | uncountedHolds
	for _, c := range []struct {
		name    string
		request bool
		want    uint64
	}{{"off", true, uncountedStats}, {"on", true, 0}, {"off", false, both}, {"md7", false, uncountedHolds}, {"zram7", false, 0}, {"ram7", false, uncountedStats}} {
		d := device{path: "/dev/x", sectors: 8, dir: dir + "/" + c.name, diskDir: dir + "/" + c.name, request: c.request}
		if got := d.uncounted(); got != c.want {
			t.Errorf("%s, driven by requests: %v: %d, want %d", c.name, c.request, got, c.want)
		}
		if err := d.refuse(); err != nil {
			t.Errorf("%s, driven by requests: %v: %v", c.name, c.request, err)
		}
	}
	for stat, want := range map[string]bool{
		"5 0 40 0 0 0 0 0 0 0 0":             false,
		"0 0 0 0 1 0 8 0 0 0 0":              true,
		"5 0 40 0 0 0 0 0 0 0 0 0 0 0 0 3 0": false, // flushes only
		"0 0 0 0 0 0 0 0 0 0 0 1 0 8 0 0 0":  true,
		"":                                   false,
	} {
		sys("on/stat", stat)
		if got := (device{diskDir: dir + "/on"}).changed(); got != want {
			t.Errorf("changed of %q: %v", stat, got)
		}
	}
}

// Multipath puts the requests it has into the queue of a path as they are.
func TestOpaqueHolders(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		files []string // below the holder, NAME or NAME=TEXT
		part  bool
		want  string
	}{
		"dm-0": {files: []string{"dm/uuid=LVM-abc", "dm/name=vg-orders"}},
		"dm-1": {files: []string{"dm/uuid=mpath-3600", "dm/name=mpatha"}, want: "/dev/mapper/mpatha"},
		"dm-2": {files: []string{"dm/uuid=", "mq/0/nr_tags=1"}, want: "/dev/dm-2"},
		"dm-3": {files: []string{"mq/0/nr_tags=1", "dm/name=requests"}, part: true, want: "/dev/mapper/requests"},
		"md0":  {files: []string{"md/level=raid1"}, want: "/dev/md0"},
	} {
		disk := filepath.Join(dir, "disk-"+name)
		holders := disk + "/holders"
		if c.part {
			holders = disk + "/sdx1/holders"
		}
		at := filepath.Join(dir, name)
		err := errors.Join(os.MkdirAll(holders, 0o700), os.MkdirAll(disk+"/queue", 0o700), os.WriteFile(disk+"/queue/iostats", []byte("1"), 0o600))
		for _, f := range c.files {
			path, text, _ := strings.Cut(f, "=")
			path = filepath.Join(at, path)
			err = errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600))
		}
		if err = errors.Join(err, os.Symlink(at, filepath.Join(holders, name))); err != nil {
			t.Fatal(err)
		}
		var e *RefusedError
		got := ""
		if errors.As((device{path: "/dev/sdx", sectors: 8, dir: disk, diskDir: disk}).refuse(), &e) {
			got = strings.TrimPrefix(e.Next, "track ")
		}
		if got != c.want {
			t.Errorf("held by %s: refused in favour of %q, want %q", name, got, c.want)
		}
	}
}

// Of a device whose quiet moments nobody sees: an end that passed the programs by
// leaves the write with what they remember, and that is reported.
func TestRecall(t *testing.T) {
	needKernel(t)
	const size = 8 << 20
	disk := newZram(t, size)
	tr := start(t, disk, Options{})
	tr.rec.set(offUncounted, uncountedHolds)
	tr.rec.set(offDrained, 0)
	if err := tr.arm(); err != nil {
		t.Fatal(err)
	}
	if err := tr.Seal(2); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.LoadPinnedMap(tr.inflightPin(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var want []cbt.Extent
	for i := range int64(1500) { // more than a batch
		at := block(i)
		if i%2 == 0 {
			at.End = at.Off + sector
		}
		if err := m.Put(1<<63+uint64(i), [2]uint64{uint64(at.Off / sector), uint64(at.End / sector)}); err != nil {
			t.Fatal(err)
		}
		want = append(want, block(i))
	}
	if err := m.Put(uint64(7), [2]uint64{size / sector, size/sector + 8}); err != nil { // beyond the end
		t.Fatal(err)
	}
	mustPutBack(t, tr, mustTake(t, tr, 2), all(tr)) // nothing was missed
	tr.recalled = 1 << 40                           // as if something were
	taken := mustTake(t, tr, 2)
	if got := taken.Extents(); !slices.Equal(got, cbt.Normalize(want)) {
		t.Errorf("took %v", got)
	}
	mustPutBack(t, tr, taken, all(tr))
	if got := mustMap(t, tr).Extents(); len(got) > 0 {
		t.Errorf("reported again: %v", got)
	}
}
