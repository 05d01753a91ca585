package fuzz_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/failback/failback"
	"github.com/failback/failback/internal/journal"
)

// Layout of a stage's files, as docs/format-stage.md has it. What is fuzzed is all
// three of them in a row.
const (
	stagedVolume = 24<<10 + 512
	stageHead    = 2048
	stageIndex   = 4096
	stageInput   = stageHead + stageIndex + stagedVolume
)

// broken is a target that fails at a write.
type broken struct {
	undone
	left int
}

func (v *broken) WriteAt(p []byte, off int64) (int, error) {
	if v.left--; v.left < 0 {
		return 0, errors.New("no more")
	}
	return v.undone.WriteAt(p, off)
}

// stagesLeft are stages as the writer leaves them when they cannot be applied.
func stagesLeft(f *testing.F) map[string][]any {
	made := map[string][]any{}
	for name, change := range map[string]func(src, dst []byte){
		"pieces": func(src, dst []byte) {
			copy(src, dst)
			_, _ = rand.NewChaCha8([32]byte{9}).Read(src[8192:12288])
			_, _ = rand.NewChaCha8([32]byte{8}).Read(src[20480:])
		},
		"zeroes": func(src, dst []byte) { copy(src, dst); clear(src[4096:12288]); src[0]++ },
		"all":    func(src, _ []byte) { copy(src, bytes.Repeat([]byte("of no value "), len(src)/12)) },
	} {
		src, dst := &undone{make([]byte, stagedVolume)}, &broken{undone: undone{make([]byte, stagedVolume)}}
		_, _ = rand.NewChaCha8([32]byte{2}).Read(dst.b)
		change(src.b, dst.b)
		dir := f.TempDir()
		_, err := failback.Sync(f.Context(), failback.Side{Volume: src, Name: "source"},
			failback.Side{Volume: dst, Name: "target", Journal: filepath.Join(dir, "j"), Stage: dir}, failback.Options{})
		heads, _ := filepath.Glob(filepath.Join(dir, "*.fbs"))
		if err == nil || len(heads) != 1 {
			f.Fatalf("%v, left %v", err, heads)
		}
		var in []byte
		for _, suffix := range []string{"", "-index", "-data"} {
			b, err := os.ReadFile(heads[0] + suffix)
			if err != nil {
				f.Fatal(err)
			}
			in = append(in, b...)
		}
		made[name] = []any{true, in}
		made[name+"-cut"] = []any{false, in[:len(in)-512]}
	}
	return made
}

// mendStage makes every checksum of head and index right, as whoever forges a stage can.
func mendStage(b []byte) {
	le := binary.LittleEndian
	page := b[stageHead : stageHead+stageIndex]
	sum := stageSum(le.Uint64(b[64:]), 0, page[:stageIndex-8])
	if len(bytes.Trim(page, "\x00")) > 0 {
		le.PutUint64(page[stageIndex-8:], sum)
		le.PutUint64(b[104:], xxhash.Sum64(le.AppendUint64(make([]byte, 8, 16), sum)))
	}
	le.PutUint64(b[stageHead-8:], xxhash.Sum64(b[:stageHead-8]))
}

// stageSum is the checksum of a block, or of a page.
func stageSum(key, number uint64, content []byte) uint64 {
	b := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, key), number)
	sum := xxhash.Sum64(append(b, content...))
	if sum < 2 {
		sum += 2
	}
	return sum
}

// naiveStage lays what the index says over volume, and says whether it may be laid.
func naiveStage(in, volume []byte) bool {
	le := binary.LittleEndian
	block := int(le.Uint32(in[24:]))
	data := in[stageHead+stageIndex:]
	if len(data) != stagedVolume {
		return false
	}
	for i := range 511 {
		e := le.Uint64(in[stageHead+8*i:])
		off := i * block
		if e == 0 {
			continue
		}
		if off >= len(volume) {
			return false
		}
		end := min(off+block, len(volume))
		content := data[off:end]
		if e == 1 {
			content = make([]byte, end-off)
		} else if e != stageSum(le.Uint64(in[64:]), uint64(i), content) {
			return false
		}
		copy(volume[off:end], content)
	}
	return true
}

// FuzzStage gives any three files to who finishes what a crash has interrupted, also
// with checksums made right. It never panics and allocates in proportion to them; what
// it applies is what a naive reader of the format applies, and of what it refuses
// nothing is written.
func FuzzStage(f *testing.F) {
	streamSeeds(f, stagesLeft(f))
	dir := f.TempDir()
	if memory, err := os.MkdirTemp("/dev/shm", "stage"); err == nil {
		// What is synced a thousand times a second need not reach a disk.
		dir = memory
		f.Cleanup(func() { os.RemoveAll(memory) })
	}
	f.Fuzz(func(t *testing.T, mend bool, in []byte) { finishStage(t, dir, mend, in) })
}

func finishStage(t *testing.T, dir string, mend bool, in []byte) {
	if len(in) < stageHead+stageIndex || len(in) > 2*stageInput {
		return
	}
	in = bytes.Clone(in)
	if mend {
		mendStage(in)
	}
	path := filepath.Join(dir, "x.fbs")
	for suffix, b := range map[string][]byte{"": in[:stageHead], "-index": in[stageHead : stageHead+stageIndex], "-data": in[stageHead+stageIndex:]} {
		if err := os.WriteFile(path+suffix, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	j, err := journal.Begin(journal.Disk, filepath.Join(dir, "j"), journal.Record{
		Touched: true, Run: [16]byte(in[32:]), Stage: path, Started: time.Unix(1, 0), Updated: time.Unix(1, 0),
		Source: journal.Volume{Size: stagedVolume}, Target: journal.Volume{Size: stagedVolume},
	})
	if err == nil {
		err = j.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	before := bytes.Repeat([]byte{7}, stagedVolume)
	v := &undone{bytes.Clone(before)}
	side := failback.Side{Volume: v, Name: "target", Journal: filepath.Join(dir, "j"), Stage: dir}
	if n := allocated(func() { _, err = side.ApplyStage(context.Background(), failback.Options{}, false) }); n > 8<<20+64*uint64(len(in)) {
		t.Errorf("allocated %d bytes for %d", n, len(in))
	}
	if err != nil {
		if !bytes.Equal(v.b, before) {
			t.Fatalf("refused, and the target was written: %v", err)
		}
		return
	}
	if !naiveStage(in, before) || !bytes.Equal(v.b, before) {
		t.Fatal("not what the naive reader applies")
	}
}
