package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/failback/failback/internal/faulty"
)

// powerFiles are files that a power cut hits, by the steps of Disk.
type powerFiles struct{ *faulty.Dir }

func (d powerFiles) Open(path string, write bool) (Store, error) {
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	f, err := d.Dir.Open(path, flag)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// TestPower: for 400 seeds processes come one after the other, each goes on with
// the journal and writes into it until it dies or the power fails; only the
// power takes what is in caches along. What Begin and Commit have returned for
// is never taken back, the journal is never damaged, and whoever begins reads
// what one of them wrote (L10).
func TestPower(t *testing.T) {
	const path = "state/t.fbj"
	lost, seen := 0, 0
	for seed := range uint64(400) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 8))
			d := faulty.NewDir(nil)
			var tried, sure int64 // Done of the newest record that was written, that is durable
			for range 6 {
				d.Plug(faulty.New(faulty.Rule{Op: faulty.Step, N: 1 + r.IntN(9), Kind: faulty.Cut, After: r.IntN(2) == 0}))
				j, err := Begin(powerFiles{d}, path, said(tried+1))
				for tried++; err == nil; tried++ {
					sure = tried
					err = j.Commit(said(tried + 1))
				}
				if !errors.Is(err, faulty.ErrPower) {
					t.Fatal(err)
				}
				d.Plug(nil)
				check := d.Crash(r.Uint64())
				if rec, err := Read(powerFiles{check}, path); err != nil && (sure > 0 || !errors.Is(err, fs.ErrNotExist)) {
					t.Fatalf("%d is durable: %v", sure, err)
				} else if err == nil && (rec.Done < sure || rec.Done > tried) {
					t.Fatalf("journal says %d, %d is durable, %d was tried", rec.Done, sure, tried)
				}
				if r.IntN(2) == 0 {
					d, lost = check, lost+1
				}
				seen++
			}
		})
	}
	if lost == 0 || lost == seen {
		t.Errorf("power failed %d times of %d", lost, seen)
	}
}

// said is a record that tells done.
func said(done int64) Record {
	r := example()
	r.Done = done
	return r
}
