package ebpf

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/failback/failback/cbt"
	"golang.org/x/sys/unix"
)

// TestOverhead measures what tracking costs a device that does nothing but take
// small writes: the worst case. FAILBACK_OVERHEAD is how many times each way is
// run, in turns, so that a busy machine is the same for all.
//
//	FAILBACK_OVERHEAD=7 go test -run TestOverhead -v ./cbt/ebpf
func TestOverhead(t *testing.T) {
	times, err := strconv.Atoi(os.Getenv("FAILBACK_OVERHEAD"))
	if err != nil || times < 1 {
		t.Skip("measures only with FAILBACK_OVERHEAD set to a number of repetitions")
	}
	needKernel(t)
	needTool(t, "fio")
	const size = 256 << 20
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		t.Fatal(err)
	}
	programs(t, newZram(t, size))
	stats.Close()
	t.Run("one write", func(t *testing.T) { perWrite(t, newZram(t, size), 2*times) })
	t.Run("zram", func(t *testing.T) { overhead(t, newZram(t, size), times) })
	t.Run("loop", func(t *testing.T) { overhead(t, newLoop(t, makeFile(t, scratch(t)+"/disk", size), 0), times) })
}

// sample is one run. Of the three, cpu suffers least from what else the machine
// does: on zram all the work of a write is done by the one who writes.
type sample struct {
	iops float64 // per second
	p99  float64 // microseconds
	cpu  float64 // microseconds of a processor for one write
}

// ways to run in: not tracked, with marks at the queue, and at the end as well.
var ways = [...]string{"off", "marking", "reading"}

func tracked(t *testing.T, path, fs, way string) *Tracker {
	t.Helper()
	if way == "off" {
		return nil
	}
	tr := sealed(t, path, Options{FS: fs}, 2)
	if way == "reading" {
		mustPutBack(t, tr, mustTake(t, tr, 2))
	}
	return tr
}

func overhead(t *testing.T, path string, times int) {
	fs := ownFS(t)
	fio(t, path) // fills it
	got := map[string][]sample{}
	for i := range times {
		order := slices.Clone(ways[:])
		if i%2 == 1 {
			slices.Reverse(order)
		}
		for _, way := range order {
			tr := tracked(t, path, fs, way)
			got[way] = append(got[way], fio(t, path))
			if tr != nil {
				stop(t, tr)
			}
		}
	}
	for _, what := range []struct {
		name string
		of   func(sample) float64
	}{
		{"writes/s", func(s sample) float64 { return s.iops }},
		{"p99 us", func(s sample) float64 { return s.p99 }},
		{"cpu us/write", func(s sample) float64 { return s.cpu }},
	} {
		for _, way := range ways {
			var is, change []float64
			for i, s := range got[way] {
				is = append(is, what.of(s))
				change = append(change, 100*(what.of(s)/what.of(got["off"][i])-1))
			}
			t.Logf("%-13s %-8s median %9.2f, least %9.2f, most %9.2f; against off %+.1f%% (pairs %+.1f)",
				what.name, way, median(is), slices.Min(is), slices.Max(is), median(change), change)
		}
	}
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return x[len(x)/2]
}

func fio(t *testing.T, path string) sample {
	t.Helper()
	out, err := exec.Command("fio", "--name=w", "--filename="+path, "--rw=randwrite", "--bs=4k", "--direct=1", "--ioengine=psync", "--numjobs=2",
		"--group_reporting", "--time_based", "--runtime=2", "--ramp_time=0.3", "--randrepeat=0", "--norandommap", "--output-format=json").Output()
	if err != nil {
		t.Fatalf("fio: %v", err)
	}
	var report struct {
		Jobs []struct {
			User    float64 `json:"usr_cpu"` // percent
			System  float64 `json:"sys_cpu"`
			Runtime float64 `json:"job_runtime"` // milliseconds, of both jobs
			Write   struct {
				Total float64 `json:"total_ios"`
				IOPS  float64 `json:"iops"`
				Clat  struct {
					Percentile map[string]float64 `json:"percentile"`
				} `json:"clat_ns"`
			} `json:"write"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal(out, &report); err != nil || len(report.Jobs) != 1 {
		t.Fatalf("fio: %v\n%s", err, out)
	}
	j := report.Jobs[0]
	return sample{
		iops: j.Write.IOPS, p99: j.Write.Clat.Percentile["99.000000"] / 1000,
		cpu: (j.User + j.System) * 10 * j.Runtime / j.Write.Total,
	}
}

// perWrite logs the processor time that one thread takes for one small write, of
// zeroes to a zram, which keeps none of them: next to nothing but the way of a write
// through the kernel, so that tens of nanoseconds show also on a busy machine.
func perWrite(t *testing.T, path string, times int) {
	const size, writes, runs = 256 << 20, 20000, 5
	fs := ownFS(t)
	f := openFile(t, path, os.O_RDWR|unixDirect)
	buf := aligned(4096)
	got := map[string][]float64{}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for range times {
		for _, way := range ways {
			tr := tracked(t, path, fs, way)
			for run := range runs + 1 {
				begin := threadTime(t)
				for range writes {
					if _, err := f.WriteAt(buf, rand.Int64N(size/4096)*4096); err != nil {
						t.Fatal(err)
					}
				}
				if run > 0 { // the first one warms up
					got[way] = append(got[way], float64(threadTime(t)-begin)/writes)
				}
			}
			if tr != nil {
				stop(t, tr)
			}
		}
	}
	for _, way := range ways {
		t.Logf("%-8s median %5.0f ns, least %5.0f; against off %+.0f ns", way, median(got[way]), slices.Min(got[way]), median(got[way])-median(got["off"]))
	}
}

func threadTime(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// The bars of a take and of a start.
func TestTimes(t *testing.T) {
	needKernel(t)
	fs := ownFS(t)
	path := newLoop(t, makeFile(t, scratch(t)+"/disk", 2<<40), 0)
	begin := time.Now()
	tr := start(t, path, Options{FS: fs})
	first := time.Since(begin)
	if err := tr.Seal(2); err != nil {
		t.Fatal(err)
	}
	mustPutBack(t, tr, mustTake(t, tr, 2))
	for i := int64(0); i < 2<<40; i += 1 << 30 {
		tr.planes.mark(cbt.Extent{Off: i, End: i + cbt.MinBlock})
	}
	begin = time.Now()
	taken := mustTake(t, tr, 2)
	take := time.Since(begin)
	begin = time.Now()
	mustPutBack(t, tr, taken)
	t.Logf("2 TiB, a plane of 64 MiB: start %v, take %v, put back %v, kernel memory %d MiB", first, take, time.Since(begin), mustStatus(t, tr).Memory>>20)
	if got := cbt.Total(taken.Extents()); got != 0 { // spent
		t.Logf("a spent map has %d bytes", got)
	}
}

// programs logs what the kernel says of each program's own time, its two looks
// at the clock included.
func programs(t *testing.T, path string) {
	t.Helper()
	tr := sealed(t, path, Options{}, 2)
	mustPutBack(t, tr, mustTake(t, tr, 2))
	fio(t, path)
	for _, pin := range []string{tr.pins.link("mark_queued"), tr.sessionDir() + "/remember_bio", tr.sessionDir() + "/mark_bio"} {
		l, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			t.Fatal(err)
		}
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		p, err := ebpf.NewProgramFromID(info.Program)
		if err != nil {
			t.Fatal(err)
		}
		s, err := p.Stats()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%-13s ran %d times, %d ns each", filepath.Base(pin), s.RunCount, s.Runtime.Nanoseconds()/int64(s.RunCount))
		p.Close()
		l.Close()
	}
	stop(t, tr)
}
