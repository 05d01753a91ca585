package floor

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"time"

	"github.com/klauspost/compress/s2"
	"golang.org/x/sync/errgroup"

	"github.com/failback/failback/cbt"
)

// SendOptions says what [Send] sends.
type SendOptions struct {
	Source, Target string
	Extents        []cbt.Extent // what is known to be dirty
	S2             bool         // compress each frame with s2
	Direct         bool         // read the source past the page cache
}

// A batch is what goes into one frame: extents of at most one chunk in all.
type batch struct {
	x []cbt.Extent
	n int // bytes
}

// frame header, 12 bytes, little endian: extents u32, bytes before compression u32, bytes that follow the list u32. The
// list has 12 bytes for each extent: offset u64, length u32. It never leaves this process.
const (
	headerLen = 12
	itemLen   = 12
	maxItems  = chunk / 512
)

// Send sends extents over loopback TCP to a second half of this process, which writes and syncs them: what bringing
// a target in line costs when all is known beforehand and nothing is proven. Both halves use all cores.
func Send(ctx context.Context, o SendOptions) (Result, error) {
	start := time.Now()
	near, far, err := loopback()
	if err != nil {
		return Result{}, err
	}
	defer near.Close()
	defer far.Close()
	stop := context.AfterFunc(ctx, func() { near.Close(); far.Close() })
	defer stop()
	var r Result
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := send(ctx, near, o, &r)
		if err != nil { // the other half waits for bytes that will not come
			return errors.Join(err, near.Close())
		}
		return nil
	})
	var sync float64
	g.Go(func() error {
		var err error
		if sync, err = receive(ctx, far, o); err != nil {
			return errors.Join(err, far.Close())
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return Result{}, fmt.Errorf("send %s to %s: %w", o.Source, o.Target, err)
	}
	r.SyncSeconds, r.Seconds = sync, time.Since(start).Seconds()
	return r, nil
}

// loopback returns both ends of a TCP connection to itself.
func loopback() (near, far net.Conn, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, fmt.Errorf("listen on loopback: %w", err)
	}
	defer l.Close()
	// The kernel finishes the handshake into the backlog, so that dialing before accepting does not hang.
	if near, err = net.Dial("tcp", l.Addr().String()); err != nil {
		return nil, nil, fmt.Errorf("dial loopback: %w", err)
	}
	if far, err = l.Accept(); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("accept on loopback: %w", err), near.Close())
	}
	return near, far, nil
}

func batches(x []cbt.Extent) []batch {
	var out []batch
	var b batch
	for _, e := range split(x, chunk) {
		if b.n+int(e.Len()) > chunk || len(b.x) == maxItems {
			out = append(out, b)
			b = batch{}
		}
		b.x, b.n = append(b.x, e), b.n+int(e.Len())
	}
	if b.n > 0 {
		out = append(out, b)
	}
	return out
}

// send reads and packs batches on all cores and writes them as they come.
func send(ctx context.Context, c net.Conn, o SendOptions, r *Result) error {
	src, _, err := openRead(o.Source, o.Direct)
	if err != nil {
		return err
	}
	defer src.Close()
	var (
		n    = runtime.GOMAXPROCS(0)
		jobs = make(chan batch)
		full = make(chan []byte, n)
		free = make(chan []byte, 2*n)
	)
	for range cap(free) {
		free <- nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return feed(ctx, jobs, batches(o.Extents)) })
	packers, pctx := errgroup.WithContext(ctx)
	p := &packer{src: src, compress: o.S2, jobs: jobs, free: free, full: full}
	for range n {
		packers.Go(func() error { return p.run(pctx) })
	}
	g.Go(func() error { defer close(full); return packers.Wait() })
	g.Go(func() error {
		for b := range full {
			w, err := c.Write(b)
			r.WireBytes += int64(w)
			if err != nil {
				return err
			}
			free <- b // never blocks: there are no more buffers than places
		}
		return nil
	})
	r.Bytes = cbt.Total(o.Extents)
	if err := g.Wait(); err != nil {
		return err
	}
	// An empty frame ends the stream; its answer is one byte, once all is durable.
	if _, err := c.Write(make([]byte, headerLen)); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}

func feed(ctx context.Context, jobs chan<- batch, all []batch) error {
	defer close(jobs)
	for _, b := range all {
		select {
		case jobs <- b:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// A packer turns batches into frames, in buffers that come back once a frame is sent.
type packer struct {
	src      *os.File
	compress bool
	jobs     <-chan batch
	free     <-chan []byte
	full     chan<- []byte
}

func (p *packer) run(ctx context.Context) error {
	raw := alignedBuffer(chunk)
	for b := range p.jobs {
		var out []byte
		select {
		case out = <-p.free:
		case <-ctx.Done():
			return ctx.Err()
		}
		at := 0
		for _, e := range b.x {
			if _, err := p.src.ReadAt(raw[at:at+int(e.Len())], e.Off); err != nil {
				return err
			}
			at += int(e.Len())
		}
		out = appendFrame(out[:0], b, raw[:at], p.compress)
		select {
		case p.full <- out:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func appendFrame(out []byte, b batch, raw []byte, compress bool) []byte {
	head := headerLen + itemLen*len(b.x)
	if need := head + max(len(raw), s2.MaxEncodedLen(len(raw))); cap(out) < need {
		out = make([]byte, 0, need+need/8)
	}
	out = binary.LittleEndian.AppendUint32(out, uint32(len(b.x)))
	out = binary.LittleEndian.AppendUint32(out, uint32(len(raw)))
	out = binary.LittleEndian.AppendUint32(out, uint32(len(raw)))
	for _, e := range b.x {
		out = binary.LittleEndian.AppendUint64(out, uint64(e.Off))
		out = binary.LittleEndian.AppendUint32(out, uint32(e.Len()))
	}
	if !compress {
		return append(out, raw...)
	}
	stored := s2.Encode(out[head:cap(out)], raw)
	binary.LittleEndian.PutUint32(out[8:], uint32(len(stored)))
	return out[:head+len(stored)]
}

// A packet is a received frame: the list of its extents and the bytes as stored.
type packet struct {
	list, body []byte
	raw        int
}

// receive reads frames and writes them to the target on all cores, syncs, and says so.
func receive(ctx context.Context, c net.Conn, o SendOptions) (syncSeconds float64, err error) {
	dst, err := os.OpenFile(o.Target, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer dst.Close()
	n := runtime.GOMAXPROCS(0)
	full, free := make(chan packet, n), make(chan packet, 2*n)
	for range cap(free) {
		free <- packet{}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { defer close(full); return readPackets(ctx, c, free, full) })
	for range n {
		g.Go(func() error { return place(dst, o.S2, full, free) })
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	before := time.Now()
	if err := dst.Sync(); err != nil {
		return 0, err
	}
	syncSeconds = time.Since(before).Seconds()
	_, err = c.Write([]byte{1})
	return syncSeconds, err
}

func readPackets(ctx context.Context, c net.Conn, free <-chan packet, full chan<- packet) error {
	in := bufio.NewReaderSize(c, 64<<10)
	var head [headerLen]byte
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return err
		}
		items, raw, stored := binary.LittleEndian.Uint32(head[:]), binary.LittleEndian.Uint32(head[4:]), binary.LittleEndian.Uint32(head[8:])
		if items == 0 {
			return nil
		}
		if items > maxItems || raw > chunk || stored > 2*chunk {
			return fmt.Errorf("frame of %d extents, %d bytes", items, stored)
		}
		var p packet
		select {
		case p = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		p.raw = int(raw)
		p.list, p.body = grow(p.list, int(items)*itemLen), grow(p.body, int(stored))
		if _, err := io.ReadFull(in, p.list); err != nil {
			return err
		}
		if _, err := io.ReadFull(in, p.body); err != nil {
			return err
		}
		select {
		case full <- p:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func grow(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n, n+n/8)
	}
	return b[:n]
}

// place unpacks packets and writes their extents.
func place(dst *os.File, compressed bool, full <-chan packet, free chan<- packet) error {
	var plain []byte
	for p := range full {
		data := p.body
		if compressed {
			var err error
			if plain, err = s2.Decode(grow(plain, p.raw), p.body); err != nil {
				return err
			}
			data = plain
		}
		for list := p.list; len(list) > 0; list = list[itemLen:] {
			off, n := binary.LittleEndian.Uint64(list), binary.LittleEndian.Uint32(list[8:])
			if int(n) > len(data) {
				return fmt.Errorf("extent at %#x is longer than its frame", off)
			}
			if _, err := dst.WriteAt(data[:n], int64(off)); err != nil {
				return err
			}
			data = data[n:]
		}
		free <- p
	}
	return nil
}
