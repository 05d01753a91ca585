package failback

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/looptest"
)

// stampOf opens a volume, as another session does.
func stampOf(t *testing.T, path string) string {
	t.Helper()
	d, err := Open(path, OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	stamp, err := d.Stamp()
	if err := errors.Join(err, d.Close()); err != nil {
		t.Fatal(err)
	}
	if len(stamp) > 255 {
		t.Errorf("a stamp of %d bytes: %s", len(stamp), stamp)
	}
	return stamp
}

// poke writes a block past every cache.
func poke(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(noise(4096, uint64(time.Now().UnixNano())), off)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestStampFile: a write shows also where its time is put back, or where another
// file has taken the name.
func TestStampFile(t *testing.T) {
	path := makeNoise(t, filepath.Join(t.TempDir(), "v"), 1<<20, 1)
	was, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	before := stampOf(t, path)
	if again := stampOf(t, path); before == "" || again != before {
		t.Fatalf("%q, and then %q", before, again)
	}
	poke(t, path, 4096)
	if err := os.Chtimes(path, time.Time{}, was.ModTime()); err != nil {
		t.Fatal(err)
	}
	written := stampOf(t, path)
	if written == before {
		t.Errorf("a write whose time was put back: %s", written)
	}
	other := makeNoise(t, path+".other", 1<<20, 2)
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	if stampOf(t, path) == written {
		t.Error("another file has the same stamp")
	}
}

// TestStampTicks: where a file gets its times from a clock that ticks, two writes
// in one tick are told apart.
func TestStampTicks(t *testing.T) {
	var changed time.Duration
	write := func() {
		now, _, err := coarseTime()
		if err != nil {
			t.Fatal(err)
		}
		changed = now
	}
	busy := false
	ask := func() string {
		stamp, err := fileStamp(func(st *unix.Stat_t) error {
			if busy {
				write()
			}
			st.Ctim = unix.NsecToTimespec(int64(changed))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return stamp
	}
	for range 5 {
		write()
		before := ask()
		if again := ask(); again != before {
			t.Errorf("%s, and then %s", before, again)
		}
		if write(); ask() == before {
			t.Errorf("a write after the stamp: %s", before)
		}
	}
	busy = true
	if before := ask(); ask() == before {
		t.Error("a file that is written all the while has the same stamp twice")
	}
}

func TestSameTick(t *testing.T) {
	const at = 1_000_000 * time.Second
	const tick, fine = 4 * time.Millisecond, time.Microsecond
	for _, c := range []struct {
		name         string
		now, changed time.Duration
		want         time.Duration
	}{
		{"long ago", at, at - time.Hour, 0},
		{"the tick before", at + tick + fine, at + fine, 0},
		{"this tick", at + fine, at + fine, tick + 1},
		{"within this tick, on a system with fine times", at + fine, at + 2*fine, tick + fine + 1},
		{"times of 10 ms", at + 14*time.Millisecond, at + 10*time.Millisecond, 6*time.Millisecond + tick},
		{"times of 10 ms, and over", at + 20*time.Millisecond, at + 10*time.Millisecond, 0},
		{"times of seconds", at + 500*time.Millisecond, at, 1500*time.Millisecond + tick},
		{"times of seconds, an odd one", at + 1500*time.Millisecond, at + time.Second, 500*time.Millisecond + tick},
		{"times of seconds, and over", at + 2*time.Second, at, 0},
		{"the clock was set back", at, at + time.Hour, 0},
	} {
		if got := sameTick(c.now, tick, c.changed); got != c.want {
			t.Errorf("%s: wait %v, want %v", c.name, got, c.want)
		}
	}
}

// TestStampBelow: what is written to a device by the way of what it lies on shows
// in its stamp; what is not written does not.
func TestStampBelow(t *testing.T) {
	const size = 8 << 20
	image := makeFile(t, filepath.Join(t.TempDir(), "image"), size)
	disk := looptest.Attach(t, image, looptest.Options{}).Path
	upper := looptest.Attach(t, disk, looptest.Options{}).Path
	devices := map[string]string{"disk": disk, "partition": looptest.Partition(t, disk, 1, 1<<20, 4<<20), "loop device on it": upper}
	before := map[string]string{}
	for name, path := range devices {
		if before[name] = stampOf(t, path); before[name] == "" {
			t.Skipf("%s: the kernel does not tell", name)
		}
	}
	for name, path := range devices {
		if now := stampOf(t, path); now != before[name] {
			t.Errorf("%s: nobody wrote, %s is now %s", name, before[name], now)
		}
	}
	for _, way := range []string{disk, image} {
		poke(t, way, 2<<20)
		for name, path := range devices {
			now := stampOf(t, path)
			if now == before[name] {
				t.Errorf("%s: written by the way of %s, it is still %s", name, way, now)
			}
			before[name] = now
		}
	}
}

// stacked is a logical volume on a partition and a disk, where all count.
func stacked() map[string]string {
	const stat = "1 0 8 1 %d 0 64 1 0 1 1 2 0 16 1"
	files := map[string]string{
		"proc/sys/kernel/random/boot_id": "boot",
		"sys/block/dm-0/dev":             "253:0",
		"sys/block/dm-0/slaves/sda1/dev": "8:1",
		"sys/block/dm-0/slaves/sdb/dev":  "8:16",
		"sys/block/sda/dev":              "8:0",
		"sys/block/sda/sda1/dev":         "8:1",
		"sys/block/sda/sda1/partition":   "1",
		"sys/block/sda/sda1/stat":        fmt.Sprintf(stat, 1),
		"sys/block/sdb/dev":              "8:16",
	}
	for i, name := range []string{"dm-0", "sda", "sdb"} {
		files["sys/block/"+name+"/diskseq"] = fmt.Sprint(i + 1)
		files["sys/block/"+name+"/stat"] = fmt.Sprintf(stat, 10)
		files["sys/block/"+name+"/queue/iostats"] = "1"
	}
	return files
}

func TestStampStacked(t *testing.T) {
	volume := devno(253, 0)
	is := func(change map[string]string) string {
		files := stacked()
		for name, text := range change {
			if files[name] = text; text == "" {
				delete(files, name)
			}
		}
		stamp := standIn(t, files).stamp(volume)
		if len(stamp) > 255 {
			t.Errorf("a stamp of %d bytes: %s", len(stamp), stamp)
		}
		return stamp
	}
	before := is(nil)
	if before == "" || before != is(nil) {
		t.Fatalf("%q, and then %q", before, is(nil))
	}
	const written = "1 0 8 1 11 0 72 1 0 1 1 2 0 16 1"
	for name, change := range map[string]map[string]string{
		"the volume is written":           {"sys/block/dm-0/stat": written},
		"a disk of it is written":         {"sys/block/sdb/stat": written},
		"its partition is written":        {"sys/block/sda/sda1/stat": written},
		"the partition's disk is written": {"sys/block/sda/stat": written},
		"a disk of it is another one":     {"sys/block/sdb/diskseq": "9"},
		"one disk is gone from it":        {"sys/block/dm-0/slaves/sdb/dev": ""},
	} {
		if now := is(change); now == before || now == "" {
			t.Errorf("%s: %q, before %q", name, now, before)
		}
	}
	deep := map[string]string{}
	for i := range 2 * maxBelow {
		name, next := fmt.Sprintf("dm-%d", 10+i), fmt.Sprintf("dm-%d", 11+i)
		deep["sys/block/"+name+"/dev"] = fmt.Sprintf("253:%d", 10+i)
		deep["sys/block/"+name+"/slaves/"+next+"/dev"] = fmt.Sprintf("253:%d", 11+i)
		deep["sys/block/"+name+"/diskseq"], deep["sys/block/"+name+"/stat"], deep["sys/block/"+name+"/queue/iostats"] = "7", written, "1"
	}
	deep["sys/block/dm-0/slaves/dm-10/dev"] = "253:10"
	for name, change := range map[string]map[string]string{
		"a disk of it counts nothing":  {"sys/block/sdb/queue/iostats": "0"},
		"a disk has no count":          {"sys/block/sda/stat": ""},
		"a device of it has no number": {"sys/block/dm-0/slaves/sdc/size": "8"},
		"it lies on an endless pile":   deep,
		"it is over a file unknown":    {"sys/block/dm-0/loop/backing_file": "/none/such (deleted)"},
	} {
		if now := is(change); now != "" {
			t.Errorf("%s: %q", name, now)
		}
	}
	circle := is(map[string]string{"sys/block/sdb/slaves/dm-0/dev": "253:0"})
	if circle == "" {
		t.Error("a circle has no end")
	}
}
