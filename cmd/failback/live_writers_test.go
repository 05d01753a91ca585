//go:build live

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"
)

// A writer works on the file system at dir, one thing after the other, and
// knows when each was acknowledged. What it leaves on a volume that is a copy of
// one moment is what it had done by then, to a number that says itself which:
// nothing later, nothing left out, nothing by half.
type writer interface {
	// open makes what is needed in dir and returns what does the n-th thing, n
	// from 1 on.
	open(dir string) (do func(n int64) error, shut func() error, err error)
	// check returns how many things are done in a copy of dir.
	check(dir string) (int64, error)
}

// work is a writer at work.
type work struct {
	writer
	name  string
	every atomic.Int64 // nanoseconds from where one thing begins to where the next does, if it can

	done atomic.Int64
	mu   sync.Mutex
	acks []time.Duration // when the n-th was acknowledged, see uptime
	slow time.Duration   // the longest that one took
	stop context.CancelFunc
	over chan error
}

func newWork(name string, every time.Duration, r writer) *work {
	w := &work{writer: r, name: name}
	w.every.Store(int64(every))
	return w
}

// uptime is the clock of /proc/uptime, which a shell command can read as well.
func uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // it always exists
	}
	return time.Duration(ts.Nano())
}

// begin starts the work; it goes on until the test ends or end is called.
func (w *work) begin(t *testing.T, dir string) {
	t.Helper()
	do, shut, err := w.open(dir)
	if err != nil {
		t.Fatalf("%s: %v", w.name, err)
	}
	var ctx context.Context
	ctx, w.stop = context.WithCancel(context.Background())
	w.over = make(chan error, 1)
	go func() { w.over <- errors.Join(w.run(ctx, do), shut()) }()
}

func (w *work) run(ctx context.Context, do func(n int64) error) error {
	for n := w.done.Load() + 1; ctx.Err() == nil; n++ {
		before := uptime()
		next := time.After(time.Duration(w.every.Load()))
		if err := do(n); err != nil {
			return fmt.Errorf("%s, %d: %w", w.name, n, err)
		}
		now := uptime()
		w.mu.Lock()
		w.acks = append(w.acks, now)
		w.slow = max(w.slow, now-before)
		w.mu.Unlock()
		w.done.Store(n)
		select {
		case <-next:
		case <-ctx.Done():
		}
	}
	return nil
}

// end ends the work.
func (w *work) end(t *testing.T) {
	t.Helper()
	if w.stop == nil {
		return
	}
	w.stop()
	w.stop = nil
	select {
	case err := <-w.over:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Errorf("%s still waits for the volume", w.name)
	}
}

// longest returns how long one thing took at most since it was last asked.
func (w *work) longest() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.slow
	w.slow = 0
	return d
}

// goesOn requires that it does a few things more.
func (w *work) goesOn(t *testing.T) {
	t.Helper()
	from := w.done.Load()
	eventually(t, w.name+" to go on", func() bool { return w.done.Load() > from+3 })
}

// proves requires that a copy has all that was acknowledged before since.
func (w *work) proves(t *testing.T, dir string, since time.Duration) {
	t.Helper()
	found, err := w.check(dir)
	if err != nil {
		t.Errorf("%s in the copy: %v", w.name, err)
		return
	}
	w.mu.Lock()
	want, _ := slices.BinarySearch(w.acks, since)
	w.mu.Unlock()
	if found < int64(want) {
		t.Errorf("%s: the copy has %d, and %d were acknowledged before the pause", w.name, found, want)
	}
	if most := w.done.Load() + 1; found > most {
		t.Errorf("%s: the copy has %d, and %d were begun", w.name, found, most)
	}
}

// directWriter writes blocks at random with O_DIRECT into a file of a fixed
// size. Each says which write it is from, so that a copy has to be just what one
// number of writes makes of the file.
type directWriter struct {
	slots int
	seed  uint64
}

const (
	directBlock = 16 << 10 // four pieces: one that is half there is seen
	directName  = "direct"
)

// slot is where the n-th block goes.
func (d *directWriter) slot(n int64) int {
	return int(rand.New(rand.NewPCG(d.seed, uint64(n))).Uint64N(uint64(d.slots)))
}

func (d *directWriter) block(p []byte, n int64) {
	x := uint64(n) * 0x9e3779b97f4a7c15
	for i := 0; i < len(p); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(p[i:], x)
	}
	binary.LittleEndian.PutUint64(p, uint64(n))
	binary.LittleEndian.PutUint64(p[8:], xxhash.Sum64(p[16:]))
}

func (d *directWriter) open(dir string) (func(int64) error, func() error, error) {
	path := filepath.Join(dir, directName)
	if err := os.WriteFile(path, make([]byte, d.slots*directBlock), 0o600); err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil, nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, nil, err
	}
	p, err := unix.Mmap(-1, 0, directBlock, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // aligned
	if err != nil {
		return nil, nil, err
	}
	do := func(n int64) error {
		d.block(p, n)
		_, err := f.WriteAt(p, int64(d.slot(n))*directBlock)
		return err
	}
	return do, func() error { return errors.Join(f.Close(), unix.Munmap(p)) }, nil
}

func (d *directWriter) check(dir string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(dir, directName))
	if err != nil {
		return 0, err
	}
	if len(b) != d.slots*directBlock {
		return 0, fmt.Errorf("%d bytes, want %d", len(b), d.slots*directBlock)
	}
	last, most := make([]int64, d.slots), int64(0)
	zero := make([]byte, directBlock)
	for i := range d.slots {
		p := b[i*directBlock:][:directBlock]
		if bytes.Equal(p, zero) {
			continue
		}
		last[i] = int64(binary.LittleEndian.Uint64(p))
		if binary.LittleEndian.Uint64(p[8:]) != xxhash.Sum64(p[16:]) {
			return 0, fmt.Errorf("block %d of write %d is torn", i, last[i])
		}
		most = max(most, last[i])
	}
	want := make([]int64, d.slots)
	for n := int64(1); n <= most; n++ {
		want[d.slot(n)] = n
	}
	for i := range want {
		if want[i] != last[i] {
			return 0, fmt.Errorf("block %d is of write %d, after %d writes it is to be of %d: not of one moment", i, last[i], most, want[i])
		}
	}
	return most, nil
}

// appendWriter appends records to a file, through the page cache; some of them
// are synced. A file that is long enough is followed by another, and the one
// before it removed.
type appendWriter struct{ seed uint64 }

const appendFile = 2 << 20 // bytes

func (a *appendWriter) record(n int64) []byte {
	p := noise(24+int(rand.New(rand.NewPCG(a.seed, uint64(n))).Uint64N(5000)), uint64(n))
	binary.LittleEndian.PutUint64(p, uint64(len(p)))
	binary.LittleEndian.PutUint64(p[8:], uint64(n))
	binary.LittleEndian.PutUint64(p[16:], xxhash.Sum64(p[24:]))
	return p
}

func appendName(k int) string { return fmt.Sprintf("append.%06d", k) }

func (a *appendWriter) open(dir string) (func(int64) error, func() error, error) {
	k, size := 0, 0
	f, err := os.Create(filepath.Join(dir, appendName(k)))
	do := func(n int64) error {
		if size > appendFile {
			if err := f.Close(); err != nil {
				return err
			}
			k, size = k+1, 0
			if f, err = os.Create(filepath.Join(dir, appendName(k))); err != nil {
				return err
			}
			if k > 1 {
				if err := os.Remove(filepath.Join(dir, appendName(k-2))); err != nil {
					return err
				}
			}
		}
		m, err := f.Write(a.record(n))
		if size += m; err == nil && n%64 == 0 {
			err = f.Sync()
		}
		return err
	}
	return do, func() error { return f.Close() }, err
}

func (a *appendWriter) check(dir string) (int64, error) {
	names, err := filepath.Glob(filepath.Join(dir, "append.*"))
	if err != nil {
		return 0, err
	}
	slices.Sort(names)
	last := int64(-1)
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return 0, err
		}
		for len(b) > 0 {
			size := len(b) + 1
			if len(b) >= 24 {
				size = int(binary.LittleEndian.Uint64(b))
			}
			if size < 24 || size > len(b) || binary.LittleEndian.Uint64(b[16:]) != xxhash.Sum64(b[24:size]) {
				return 0, fmt.Errorf("%s: the record after %d is torn", filepath.Base(name), last)
			}
			n := int64(binary.LittleEndian.Uint64(b[8:]))
			if last >= 0 && n != last+1 {
				return 0, fmt.Errorf("%s: record %d follows %d", filepath.Base(name), n, last)
			}
			last, b = n, b[size:]
		}
	}
	return max(0, last), nil
}

// sqliteWriter commits rows to a database by the sqlite3 program, each of them
// durable before the next.
type sqliteWriter struct{ program string }

const sqliteSetup = `PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=200;
CREATE TABLE entry (n INTEGER PRIMARY KEY, changed INTEGER, payload BLOB);
SELECT 'last', 0;
`

func (s *sqliteWriter) open(dir string) (func(int64) error, func() error, error) {
	c := exec.Command(s.program, "-bail", "-batch", "-list", filepath.Join(dir, "db"))
	var errs bytes.Buffer
	c.Stderr = &errs
	in, err := c.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := c.Start(); err != nil {
		return nil, nil, err
	}
	lines := bufio.NewReader(out)
	step := func(statements string, want int64) error {
		if _, err := io.WriteString(in, statements); err != nil {
			return err
		}
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return fmt.Errorf("%w; it said %s", err, errs.String())
			}
			if n, ok := strings.CutPrefix(strings.TrimSpace(line), "last|"); ok {
				if n != strconv.FormatInt(want, 10) {
					return fmt.Errorf("row %s, want %d", n, want)
				}
				return nil
			}
		}
	}
	do := func(n int64) error {
		return step(fmt.Sprintf("BEGIN; INSERT INTO entry VALUES (%d, 0, randomblob(%d)); UPDATE entry SET changed = %d WHERE n = abs(random() %% %d); COMMIT; SELECT 'last', max(n) FROM entry;\n",
			n, 200+n%3000, n, n), n)
	}
	shut := func() error { return errors.Join(in.Close(), c.Wait()) }
	return do, shut, step(sqliteSetup, 0)
}

func (s *sqliteWriter) check(dir string) (int64, error) {
	// A copy: it is to be recovered, and dir is not to be written.
	own, err := os.MkdirTemp("", "failback-live-db-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(own)
	for _, name := range []string{"db", "db-wal"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(own, name), b, 0o600)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
	}
	out, err := exec.Command(s.program, "-bail", "-batch", "-list", filepath.Join(own, "db"),
		"PRAGMA integrity_check; SELECT coalesce(max(n), 0), count(*) FROM entry;").CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	words := strings.Fields(string(out))
	if len(words) != 2 || words[0] != "ok" {
		return 0, fmt.Errorf("integrity_check: %s", out)
	}
	last, count, _ := strings.Cut(words[1], "|")
	if last != count {
		return 0, fmt.Errorf("the last row is %s, and there are %s", last, count)
	}
	return strconv.ParseInt(last, 10, 64)
}
