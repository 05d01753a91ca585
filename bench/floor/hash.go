package floor

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	simd "github.com/minio/sha256-simd"
	"golang.org/x/sync/errgroup"

	"github.com/failback/failback/merkle"
)

// HashOptions says what [Hash] reads and what it does with it.
type HashOptions struct {
	Paths  []string // files read at the same time; each whole
	Hash   string   // one of [Hashes]
	Unit   int      // bytes hashed at once; default what failback uses: 4 KiB for gmac, else 64 KiB
	Direct bool     // read with O_DIRECT, past the page cache
	Key    [32]byte // key of the keyed ones
}

// Hashes returns the names that Hash knows on this machine: "none" only reads, "sha256" is one stream of sha256-simd for
// each core, "sha256-lanes" its multi-lane server, which needs AVX-512, "sha256-std" the standard library.
func Hashes() []string {
	all := []string{"none", "xxhash64", "gmac", "blake3", "sha256", "sha256-std"}
	if hasLanes() {
		all = append(all, "sha256-lanes")
	}
	return all
}

// digester hashes one unit; off makes nonces differ. One goroutine uses it.
type digester func(off int64, b []byte) uint64

// directReaders is how many reads are under way at once past the page cache: a disk needs depth, a cache needs cores.
const directReaders = 8

// Hash reads files and hashes them on all cores: nothing that hashes so can be faster. The sum folds all digests in
// any order, so that two ways to compute the same agree.
func Hash(ctx context.Context, o HashOptions) (Result, error) {
	if !slices.Contains(Hashes(), o.Hash) {
		return Result{}, fmt.Errorf("hash %q: want one of %v", o.Hash, Hashes())
	}
	if o.Unit == 0 {
		o.Unit = 64 << 10
		if o.Hash == "gmac" {
			o.Unit = 4 << 10
		}
	}
	if o.Unit < 512 || chunk%o.Unit != 0 {
		return Result{}, fmt.Errorf("hash unit %d: want a divisor of %d, at least 512", o.Unit, chunk)
	}
	makers, err := digesters(o)
	if err != nil {
		return Result{}, err
	}
	start := time.Now()
	sum, bytes, err := hashFiles(ctx, o, makers)
	if err != nil {
		return Result{}, fmt.Errorf("read and hash: %w", err)
	}
	return Result{Seconds: time.Since(start).Seconds(), Bytes: bytes, Sum: sum}, nil
}

// digesters makes one digester for each goroutine that is to hash.
func digesters(o HashOptions) ([]digester, error) {
	n := runtime.GOMAXPROCS(0)
	if o.Direct {
		n = max(n, directReaders)
	}
	if o.Hash == "sha256-lanes" {
		return laneDigesters(), nil
	}
	out := make([]digester, n)
	for i := range out {
		d, err := newDigester(o.Hash, o.Key)
		if err != nil {
			return nil, err
		}
		out[i] = d
	}
	return out, nil
}

func newDigester(name string, key [32]byte) (digester, error) {
	switch name {
	case "none":
		return func(int64, []byte) uint64 { return 0 }, nil
	case "xxhash64":
		return func(_ int64, b []byte) uint64 { return xxhash.Sum64(b) }, nil
	case "gmac":
		return newGMAC(key)
	case "blake3":
		// Ours drives the lanes of the fastest library there is: a slower one would flatter us.
		h, err := merkle.NewHasher(merkle.Shape{Size: 1 << 50, Leaf: 1 << 20, Algorithm: merkle.BLAKE3})
		if err != nil {
			return nil, err
		}
		return func(_ int64, b []byte) uint64 {
			sum := h.Leaf(b)
			return binary.LittleEndian.Uint64(sum[:])
		}, nil
	case "sha256":
		return streamDigester(simd.New()), nil
	default:
		return streamDigester(sha256.New()), nil
	}
}

func newGMAC(key [32]byte) (digester, error) {
	block, err := aes.NewCipher(key[:16])
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	nonce, tag := make([]byte, aead.NonceSize()), make([]byte, 0, aead.Overhead())
	return func(off int64, b []byte) uint64 {
		binary.LittleEndian.PutUint64(nonce, uint64(off))
		return binary.LittleEndian.Uint64(aead.Seal(tag, nonce, nil, b))
	}, nil
}

func streamDigester(h hash.Hash) digester {
	sum := make([]byte, 0, 64)
	return func(_ int64, b []byte) uint64 {
		h.Reset()
		h.Write(b)
		return binary.LittleEndian.Uint64(h.Sum(sum))
	}
}

// A hashJob is one pass over files of which goroutines take chunks by turns, so that all files are read at the same pace.
type hashJob struct {
	files []*os.File
	size  int64 // of the longest
	read  int   // bytes of one read
	unit  int
	next  atomic.Int64
	sum   atomic.Uint64
}

// hashFiles gives every digester a goroutine.
func hashFiles(ctx context.Context, o HashOptions, with []digester) (sum uint64, total int64, err error) {
	// A chunk that fits the core's own cache is still there when it is hashed; a disk wants long reads.
	j := &hashJob{read: 256 << 10, unit: o.Unit}
	if o.Direct {
		j.read = chunk
	}
	for _, path := range o.Paths {
		fd, n, err := openRead(path, o.Direct)
		if err != nil {
			return 0, 0, err
		}
		defer fd.Close()
		j.files, j.size = append(j.files, fd), max(j.size, n)
		total += n
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, d := range with {
		g.Go(func() error { return j.work(ctx, d) })
	}
	err = g.Wait()
	return j.sum.Load(), total, err
}

func (j *hashJob) work(ctx context.Context, d digester) error {
	buf := alignedBuffer(j.read)
	for ctx.Err() == nil {
		i := j.next.Add(1) - 1
		n := int64(len(j.files))
		off := i / n * int64(j.read)
		if off >= j.size {
			return nil
		}
		got, err := j.files[i%n].ReadAt(buf, off)
		if err != nil && err != io.EOF {
			return err
		}
		var sum uint64
		for k := 0; k < got; k += j.unit {
			at := off + int64(k)
			sum += d(at, buf[k:min(k+j.unit, got)]) * uint64(2*(at/int64(j.unit))+1)
		}
		j.sum.Add(sum)
	}
	return ctx.Err()
}
