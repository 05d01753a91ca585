package demo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/cespare/xxhash/v2"
)

// recordLog is a database of our own for where there is no SQLite: a ring of
// records of one block in a part of a file. Transaction n is record n, in slot
// n modulo the number of slots; it is durable when load goes on to the next.
//
//	off size field
//	  0    8 n        number of the transaction, from 1; 0: the slot was never used
//	  8 4080 payload  text that depends on n
//	4088    8 sum     xxhash64 of all before it
type recordLog struct {
	path string
	off  int64 // where in the file it begins
	size int64 // bytes
}

const (
	recordSize    = 4096
	recordLogSize = 16 << 20
)

func (l *recordLog) slots() int64 { return l.size / recordSize }

func (l *recordLog) load(ctx context.Context, enough <-chan struct{}) (int64, error) {
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, err
	}
	last, err := l.commit(ctx, f, enough)
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, fmt.Errorf("work on %s: %w", l.path, err)
	}
	return last, nil
}

func (l *recordLog) commit(ctx context.Context, f *os.File, enough <-chan struct{}) (int64, error) {
	last, err := l.last(f)
	if err != nil {
		return 0, err
	}
	for done := 0; ; done++ {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-enough:
			if done >= minTransactions {
				return last, nil
			}
		default:
		}
		last++
		if _, err := f.WriteAt(record(last), l.off+last%l.slots()*recordSize); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
	}
}

func record(n int64) []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, recordSize), uint64(n))
	for i := 0; len(b) < recordSize-8; i++ {
		b = fmt.Appendf(b, "transaction %d, entry %d: %016x\n", n, i, xxhash.Sum64String(fmt.Sprint(n, i)))
	}
	b = b[:recordSize-8]
	return binary.LittleEndian.AppendUint64(b, xxhash.Sum64(b))
}

func (l *recordLog) check(context.Context) (int64, error) {
	f, err := os.Open(l.path)
	if err != nil {
		return 0, err
	}
	last, err := l.last(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, fmt.Errorf("check %s: %w", l.path, err)
	}
	return last, nil
}

// last reads the whole ring. Every record up to the last one must be there, as
// far back as there are slots.
func (l *recordLog) last(f io.ReaderAt) (int64, error) {
	first, last, count := int64(math.MaxInt64), int64(0), int64(0)
	b := make([]byte, recordSize)
	for slot := range l.slots() {
		if n, err := f.ReadAt(b, l.off+slot*recordSize); err == io.EOF && n == 0 {
			break // a file that grows as the ring fills
		} else if err != nil {
			return 0, err
		}
		n := int64(binary.LittleEndian.Uint64(b))
		if n == 0 {
			continue
		}
		if n%l.slots() != slot || binary.LittleEndian.Uint64(b[recordSize-8:]) != xxhash.Sum64(b[:recordSize-8]) {
			return 0, fmt.Errorf("record in slot %d is not whole", slot)
		}
		first, last = min(first, n), max(last, n)
		count++
	}
	if want := min(last, l.slots()); count != want || (count > 0 && last-first != count-1) {
		return 0, fmt.Errorf("%d records are there from %d to %d, the last %d should be", count, first, last, want)
	}
	return last, nil
}
