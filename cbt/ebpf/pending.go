package ebpf

import "sync/atomic"

// Pending reports whether the programs have marked any of the n bytes at off
// since the last take. Many goroutines may call it, and beside any method but
// Close and Stop. Cost: one load from memory for 64 blocks.
func (t *Tracker) Pending(off, n int64) bool {
	p := t.planes
	if off < 0 || n <= 0 || off >= p.size {
		return false
	}
	last := (min(off+n, p.size) - 1) / p.block
	for b := off / p.block; b <= last; b++ {
		if (atomic.LoadUint64(&p.dirty[b/64])|atomic.LoadUint64(&p.discarded[b/64]))&(1<<(b%64)) != 0 {
			return true
		}
	}
	return false
}
