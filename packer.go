package failback

import (
	"context"
	"math"
	"sync/atomic"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// A packer is the sink of a sync: it gathers pieces that differ into frames and
// sends them. Zero pieces travel as ranges only. It serves one goroutine.
type packer struct {
	find *finder
	out  *outlet
	enc  *transport.Encoder
	// skipZero drops zero pieces: the target reads as zeroes there.
	skipZero bool
	// later reports whether a piece is left for the next round; nil: none is.
	later func(cbt.Extent) bool

	data message.Data
	body []byte
	zero message.Zero

	at        int64 // where the unit under way begins
	dataSince pending
	zeroSince pending
}

// pending is the offset of the first unit of which something is gathered and not
// sent; nothing: math.MaxInt64.
type pending struct{ atomic.Int64 }

func (p *pending) begin(off int64) { p.CompareAndSwap(math.MaxInt64, off) }
func (p *pending) end()            { p.Store(math.MaxInt64) }

// maxSpans keeps a frame's head within what its header can say.
const maxSpans = 1024

// maxSpan is the longest range of zeroes that one span may name.
const maxSpan = 1 << 40

func newPacker(f *finder, out *outlet, ch *transport.Chooser, skipZero bool) *packer {
	p := &packer{find: f, out: out, enc: transport.NewEncoder(ch), skipZero: skipZero}
	p.dataSince.end()
	p.zeroSince.end()
	return p
}

// differ implements sink.
func (p *packer) differ(ctx context.Context, e *entry) error {
	p.at = e.unit.exts[0].Off
	return p.find.each(e, func(x piece) error {
		if p.later != nil && p.later(x.extent()) {
			return nil
		}
		if x.tag == (tag{}) {
			return p.addZero(ctx, x)
		}
		return p.addData(ctx, x)
	})
}

func (p *packer) addZero(ctx context.Context, x piece) error {
	if p.skipZero {
		return nil
	}
	p.out.stats.divergent.Add(int64(len(x.data)))
	p.out.stats.zero.Add(int64(len(x.data)))
	p.zeroSince.begin(p.at)
	if grow(p.zero.Spans, x) {
		return nil
	}
	// Spans of a frame are sorted: one that lies before the last begins a new frame.
	if n := len(p.zero.Spans); n == maxSpans || (n > 0 && p.zero.Spans[n-1].End > x.off) {
		if err := p.flushZero(ctx); err != nil {
			return err
		}
		p.zeroSince.begin(p.at)
	}
	p.zero.Spans = append(p.zero.Spans, message.Extent(x.extent()))
	return nil
}

func (p *packer) addData(ctx context.Context, x piece) error {
	p.out.stats.divergent.Add(int64(len(x.data)))
	n := len(p.data.Spans)
	full := len(p.body)+len(x.data) > transport.MaxRaw
	if full || n == maxSpans || (n > 0 && p.data.Spans[n-1].End > x.off) {
		if err := p.flushData(ctx); err != nil {
			return err
		}
	}
	p.dataSince.begin(p.at)
	if p.body == nil {
		p.enc.Reset(message.Data{}.Kind())
		p.body = p.enc.Body()[:0]
	}
	p.body = append(p.body, x.data...)
	p.data.Sums = append(p.data.Sums, x.tag[:]...)
	if !grow(p.data.Spans, x) {
		p.data.Spans = append(p.data.Spans, message.Extent(x.extent()))
	}
	return nil
}

// grow lengthens the last span by x if x begins where it ends.
func grow(spans []message.Extent, x piece) bool {
	n := len(spans)
	if n == 0 || spans[n-1].End != x.off || (spans[n-1].End-spans[n-1].Off)%pieceSize != 0 ||
		x.extent().End-spans[n-1].Off > maxSpan {
		return false
	}
	spans[n-1].End += int64(len(x.data))
	return true
}

// flush implements sink.
func (p *packer) flush(ctx context.Context) error {
	if err := p.flushData(ctx); err != nil {
		return err
	}
	return p.flushZero(ctx)
}

// since is the offset of the first unit that is not wholly sent: every unit
// below that differ has returned for has gone out.
func (p *packer) since() int64 { return min(p.dataSince.Load(), p.zeroSince.Load()) }

// close implements sink.
func (p *packer) close() { p.find.close() }

func (p *packer) flushData(ctx context.Context) error {
	if len(p.data.Spans) == 0 {
		return nil
	}
	head := p.data.Append(p.enc.Head())
	packet, err := p.enc.Finish(head, p.body)
	if err != nil {
		return err
	}
	p.data.Spans, p.data.Sums, p.body = p.data.Spans[:0], p.data.Sums[:0], nil
	if err := p.out.sendData(ctx, packet, len(head)); err != nil {
		return err
	}
	p.dataSince.end()
	return nil
}

func (p *packer) flushZero(ctx context.Context) error {
	if len(p.zero.Spans) == 0 {
		return nil
	}
	err := p.out.sendZero(ctx, p.zero)
	p.zero.Spans = p.zero.Spans[:0]
	if err == nil {
		p.zeroSince.end()
	}
	return err
}
