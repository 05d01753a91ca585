package tracked

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	ciliumebpf "github.com/cilium/ebpf"
	"github.com/failback/failback/cbt"
	"github.com/failback/failback/cbt/ebpf"
	"golang.org/x/sys/unix"
)

// A session reads what it has taken beside the writers, so a write that was on
// its way when its mark was taken has to be marked again when it lands.

const (
	replicaWriters = 3
	replicaWrites  = 500 // of each
)

// TestReplica copies a device in rounds while it is written, proves some of each
// round, and has the same bytes in the end.
func TestReplica(t *testing.T) {
	eachVolume(t, func(t *testing.T, v volume) {
		fs := ownFS(t)
		tr := track(t, v, fs)
		r := replica{t: t, volume: v, tr: tr, dev: open(t, v.path, os.O_RDWR|unix.O_DIRECT), rng: rand.New(rand.NewPCG(1, 9))}
		r.data = make([]byte, v.size)
		r.round(true) // from here on the ends of writes are looked at
		r.data = v.copy(t)
		over := make(chan struct{})
		var writers sync.WaitGroup
		for id := range int64(replicaWriters) {
			writers.Go(func() { r.write(id, rand.New(rand.NewPCG(uint64(id), 3))) })
		}
		go func() { writers.Wait(); close(over) }()
		rounds := 1
		for writing := true; writing; rounds++ {
			select {
			case <-over:
				writing = false
			default:
				r.round(false)
			}
		}
		r.round(true)
		if now := v.copy(t); !bytes.Equal(now, r.data) {
			for off := int64(0); off < v.size; off += block {
				if !bytes.Equal(now[off:off+block], r.data[off:off+block]) {
					t.Fatalf("the copy differs, first at %#x (L1)", off)
				}
			}
		}
		if n := remembered(t, fs); n > 0 {
			t.Errorf("%d writes that have ended are still remembered: there is room for so many only", n)
		}
		s, err := tr.Status()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("a copy in %d rounds beside %d writes is equal; %.1f times what they wrote was copied", rounds, s.Writes, float64(r.copied)/float64(s.Written))
	})
}

// remembered counts the writes of which the programs of a session have kept where
// they begin.
func remembered(t *testing.T, fs string) (n int) {
	t.Helper()
	pins, err := filepath.Glob(fs + "/failback/v2/*/inflight")
	if err != nil || len(pins) != 1 {
		t.Fatalf("pins of the map of writes under way: %q, %v", pins, err)
	}
	m, err := ciliumebpf.LoadPinnedMap(pins[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var key uint64
	var place [2]uint64
	for all := m.Iterate(); all.Next(&key, &place); {
		n++
	}
	return n
}

type replica struct {
	volume
	t      *testing.T
	tr     *ebpf.Tracker
	dev    *os.File
	data   []byte
	rng    *rand.Rand
	copied int64
}

// round copies what is taken. All but the last leave some out.
func (r *replica) round(last bool) {
	r.t.Helper()
	taken, err := r.tr.Take(r.t.Context(), epoch)
	if err != nil {
		r.t.Fatal(err)
	}
	var proven []cbt.Extent
	for run := range taken.Runs() {
		if !last && r.rng.IntN(8) == 0 {
			continue
		}
		if _, err := r.dev.ReadAt(r.data[run.Off:run.End], run.Off); err != nil {
			r.t.Fatal(err)
		}
		r.copied += run.Len()
		proven = append(proven, run.Extent)
	}
	if err := r.tr.PutBack(taken, proven); err != nil {
		r.t.Fatal(err)
	}
}

// write writes and discards in a part of the volume of its own: two writes that are
// under way to one block leave the disks of a RAID 1 unlike each other.
func (r *replica) write(id int64, rng *rand.Rand) {
	p := aligned(64 << 10)
	part := r.size / replicaWriters / block * block
	for range replicaWrites {
		n := block * (1 + rng.Int64N(16))
		off := id*part + rng.Int64N((part-n)/block)*block
		var err error
		if r.unit > 0 && rng.IntN(50) == 0 {
			err = ioctlRange(r.dev, unix.BLKDISCARD, off, n)
		} else {
			noise(rng, p[:n])
			_, err = r.dev.WriteAt(p[:n], off)
		}
		if err != nil {
			r.t.Error(err)
			return
		}
	}
}

// TestLargeWrites: a write or discard that a driver takes apart is reported once,
// and nothing else with it, nor with a flush. Else no round of a live sync would be smaller than the
// one before.
func TestLargeWrites(t *testing.T) {
	eachVolume(t, func(t *testing.T, v volume) {
		tr := track(t, v, ownFS(t))
		dev := open(t, v.path, os.O_RDWR|unix.O_DIRECT)
		take := func() []cbt.Extent {
			t.Helper()
			taken, err := tr.Take(t.Context(), epoch)
			if err != nil {
				t.Fatal(err)
			}
			got := taken.Extents()
			if err := tr.PutBack(taken, got); err != nil {
				t.Fatal(err)
			}
			return got
		}
		take() // from here on the ends of writes are looked at
		small, large := cbt.Extent{Off: 0, End: block}, cbt.Extent{Off: 3 * block, End: 3*block + 4<<20}
		p := aligned(int(large.Len()))
		noise(rand.New(rand.NewPCG(4, 2)), p)
		do := func(what string, err error, want cbt.Extent) {
			t.Helper()
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if got := take(); !slices.Equal(got, []cbt.Extent{want}) {
				t.Errorf("%s of %v: reported %v, %d bytes", what, want, got, cbt.Total(got))
			}
		}
		_, err := dev.WriteAt(p[:block], small.Off)
		do("a small write", err, small)
		if err := dev.Sync(); err != nil {
			t.Fatal(err)
		}
		if got := take(); len(got) > 0 { // its flush has no data, and is no write without a mark
			t.Errorf("a sync: reported %v", got)
		}
		_, err = dev.WriteAt(p, large.Off)
		do("a large write", err, large)
		do("a large range of zeroes", ioctlRange(dev, unix.BLKZEROOUT, large.Off, large.Len()), large)
		if v.unit > 0 {
			do("a large discard", ioctlRange(dev, unix.BLKDISCARD, large.Off, large.Len()), large)
		}
	})
}

// TestUnseen: the end of a write that the programs of a session have not seen begin
// is told, whatever becomes of it below. Of what is driven by requests it is marked
// instead: see cbt/ebpf.
func TestUnseen(t *testing.T) {
	eachVolume(t, func(t *testing.T, v volume) {
		if _, err := os.Stat(v.disk + "/mq"); err == nil {
			t.Skip("it is driven by requests")
		}
		fs := ownFS(t)
		tr := track(t, v, fs)
		taken, err := tr.Take(t.Context(), epoch) // from here on the ends of writes are looked at
		if err != nil {
			t.Fatal(err)
		}
		if err := tr.PutBack(taken, taken.Extents()); err != nil {
			t.Fatal(err)
		}
		links, err := filepath.Glob(fs + "/failback/v2/*/links/remember_bio")
		if err != nil || len(links) != 1 {
			t.Fatalf("pins of the program that remembers writes: %q, %v", links, err)
		}
		if err := os.Remove(links[0]); err != nil {
			t.Fatal(err)
		}
		dev, p := open(t, v.path, os.O_RDWR|unix.O_DIRECT), aligned(int(block))
		if !until(t, func() bool { // the program goes a little later than its pin
			if _, err := dev.WriteAt(p, 5*block); err != nil {
				t.Fatal(err)
			}
			return strangers(t, fs) > 0
		}) {
			t.Error("a write was not seen to begin, and nothing tells of its end (L1)")
		}
	})
}

// TestStatsTurnedOff: without its io statistics md is not believed any more.
func TestStatsTurnedOff(t *testing.T) {
	eachVolume(t, func(t *testing.T, v volume) {
		if _, err := os.Stat(v.disk + "/md"); err != nil {
			t.Skip("it is none of md")
		}
		tr := track(t, v, ownFS(t))
		turn := func(to string) {
			if err := os.WriteFile(v.disk+"/queue/iostats", []byte(to), 0); err != nil {
				t.Fatal(err)
			}
		}
		turn("0")
		lost := tr.Trust().Lost
		turn("1")
		if !strings.Contains(lost, "io statistics are off") || tr.Trust().Lost != lost {
			t.Errorf("lost %q, and then %q", lost, tr.Trust().Lost)
		}
	})
}

// strangers is what the programs have counted of the only tracked device.
func strangers(t *testing.T, fs string) uint64 {
	t.Helper()
	m, err := ciliumebpf.LoadPinnedMap(fs+"/failback/v2/maps/views", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	record := make([]byte, m.ValueSize())
	if err := m.Lookup(uint32(0), &record); err != nil {
		t.Fatal(err)
	}
	const at = 56
	return binary.NativeEndian.Uint64(record[at:])
}
