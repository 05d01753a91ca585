package failback

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sync/errgroup"

	"github.com/failback/failback/cbt"
)

// stageHands is how many goroutines read, write and compare what is staged.
const stageHands = 4

// A stageChunk is a range of the target of which all is staged alike.
type stageChunk struct {
	cbt.Extent
	sums []uint64 // of its blocks; nil: zeroes
}

// settle makes the stage durable and says in its head what it is now. Nobody
// writes it meanwhile.
//
//  1. sync the content
//  2. put a checksum to every page of the index, sync it
//  3. place the head: from here on it can be told whether something of it was lost
func (s *stage) settle(state stageState) error {
	err := s.data.Sync()
	h := s.h
	h.state, h.data, h.zeroes, h.pages = state, 0, 0, 0
	var chain xxhash.Digest
	chain.Reset()
	if err == nil {
		err = s.pages(s.index.ReadAt, func(page int64, b []byte) error { return s.sumPage(&h, &chain, page, b) })
	}
	if err == nil {
		err = s.index.Sync()
	}
	if h.data+h.zeroes > 0 {
		h.pages = chain.Sum64()
	}
	if err == nil {
		err = s.files.place(s.path, h.encode())
	}
	if err != nil {
		return stageFailure(s.path, stageWriting, err)
	}
	s.h = h
	return nil
}

// declare says in the head of a settled stage what it is now, durably, and reads that
// back from its medium.
func (s *stage) declare(state stageState) error {
	h := s.h
	h.state = state
	if err := s.files.place(s.path, h.encode()); err != nil {
		return stageFailure(s.path, stageWriting, err)
	}
	got, err := s.files.head(s.path)
	if err == nil && !bytes.Equal(got, h.encode()) {
		err = stageCorrupt("its head is not what was written")
	}
	if err != nil {
		return stageFailure(s.path, stageReading, err)
	}
	s.h = h
	return nil
}

// pages calls do with every page of the index that tells of something staged, in
// order. b is the page, and is do's until it returns.
func (s *stage) pages(read func([]byte, int64) (int, error), do func(page int64, b []byte) error) error {
	buf := getBuf(stagePage)
	defer buf.put()
	last := int64(-1)
	for r := range s.m.Runs() {
		first, end := r.Off/s.h.block/stageEntries, (r.End-1)/s.h.block/stageEntries
		for page := max(first, last+1); page <= end; page++ {
			if err := readAll(read, buf.b[:stagePage], page*stagePage); err != nil {
				return err
			}
			if err := do(page, buf.b[:stagePage]); err != nil {
				return err
			}
			last = page
		}
	}
	return nil
}

// sumPage holds a page of the index against what is known to be staged, counts it
// in h, and writes its checksum.
func (s *stage) sumPage(h *stageHead, chain *xxhash.Digest, page int64, b []byte) error {
	for i := range int64(stageEntries) {
		block := page*stageEntries + i
		e, state := pageEntry(b, i), s.m.State(block*s.h.block)
		if state == cbt.Clean && e != entryNone || state == cbt.Discarded && e != entryZero || state == cbt.Dirty && e == entryNone {
			return stageCorrupt("its index tells %#x of %v, which is %v", e, s.h.extent(block), state)
		}
		h.count(e)
	}
	sum := h.pageSum(page, b)
	binary.LittleEndian.PutUint64(b[stagePage-8:], sum)
	chainPage(chain, page, sum)
	_, err := s.index.WriteAt(b[stagePage-8:], (page+1)*stagePage-8)
	return err
}

func (h *stageHead) count(e uint64) {
	switch e {
	case entryNone:
	case entryZero:
		h.zeroes++
	default:
		h.data++
	}
}

func chainPage(chain *xxhash.Digest, page int64, sum uint64) {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], uint64(page))
	binary.LittleEndian.PutUint64(b[8:], sum)
	_, _ = chain.Write(b[:]) // a Digest never returns an error
}

// load learns from the index what is staged. Every page is checked, and that none
// is missing. Cost: the index is read as a whole, 0.2% of the target, mostly holes.
func (s *stage) load() error {
	var chain xxhash.Digest
	chain.Reset()
	found := stageHead{}
	buf := getBuf(chunkBytes)
	defer buf.put()
	most := int64(len(buf.b)) / stagePage
	for first, n := int64(0), s.h.pageCount(); first < n; first += most {
		b := buf.b[:min(most, n-first)*stagePage]
		if err := readAll(s.index.ReadAt, b, first*stagePage); err != nil {
			return stageFailure(s.path, stageReading, err)
		}
		for i := int64(0); i*stagePage < int64(len(b)); i++ {
			if err := s.loadPage(&found, &chain, first+i, b[i*stagePage:(i+1)*stagePage]); err != nil {
				return stageFailure(s.path, stageReading, err)
			}
		}
	}
	want := uint64(0)
	if found.data+found.zeroes > 0 {
		want = chain.Sum64()
	}
	if found.data != s.h.data || found.zeroes != s.h.zeroes || want != s.h.pages {
		return stageFailure(s.path, stageReading, stageCorrupt("its index tells of %d blocks with content and %d of zeroes, its head of %d and %d: a part of it was lost",
			found.data, found.zeroes, s.h.data, s.h.zeroes))
	}
	return nil
}

func (s *stage) loadPage(found *stageHead, chain *xxhash.Digest, page int64, b []byte) error {
	if allZero(b) {
		return nil
	}
	if err := s.checkPage(chain, page, b); err != nil {
		return err
	}
	for i := range int64(stageEntries) {
		e := pageEntry(b, i)
		if e == entryNone {
			continue
		}
		block := page*stageEntries + i
		if block >= s.h.blocks() {
			return stageCorrupt("its index tells of block %d of %d", block, s.h.blocks())
		}
		found.count(e)
		x := s.h.extent(block)
		if e == entryZero {
			s.m.Discard(x.Off, x.Len())
		} else {
			s.m.Mark(x.Off, x.Len())
		}
	}
	return nil
}

// checkPage holds a page of the index against its checksum, which goes into the chain.
func (s *stage) checkPage(chain *xxhash.Digest, page int64, b []byte) error {
	sum := binary.LittleEndian.Uint64(b[stagePage-8:])
	if sum != s.h.pageSum(page, b) {
		first, last := s.h.extent(page*stageEntries), s.h.extent(min((page+1)*stageEntries, s.h.blocks())-1)
		return stageCorrupt("the page of its index at %#x, which tells of %v, is not what was written", page*stagePage, cbt.Extent{Off: first.Off, End: last.End})
	}
	chainPage(chain, page, sum)
	return nil
}

// checkIndex reads the index of a settled stage from its medium: what a cache has of it
// says nothing of what is there after a power cut.
func (s *stage) checkIndex() error {
	var chain xxhash.Digest
	chain.Reset()
	err := s.pages(s.index.ReadMediumAt, func(page int64, b []byte) error { return s.checkPage(&chain, page, b) })
	if err == nil && s.h.data+s.h.zeroes > 0 && chain.Sum64() != s.h.pages {
		err = stageCorrupt("its index is not the one that its head tells of")
	}
	return stageFailure(s.path, stageReading, err)
}

// chunks yields what is staged, in order: content up to 1 MiB, zeroes up to clearStep.
func (s *stage) chunks(yield func(stageChunk) error) error {
	var c stageChunk
	flush := func() error {
		if c.Empty() {
			return nil
		}
		full := c
		c = stageChunk{}
		return yield(full)
	}
	err := s.pages(s.index.ReadAt, func(page int64, b []byte) error {
		for i := range int64(stageEntries) {
			e := pageEntry(b, i)
			if e == entryNone {
				continue
			}
			x := s.h.extent(page*stageEntries + i)
			most := int64(clearStep)
			if e != entryZero {
				most = max(chunkBytes, s.h.block)
			}
			if c.End != x.Off || (c.sums == nil) != (e == entryZero) || c.Len()+x.Len() > most {
				if err := flush(); err != nil {
					return err
				}
				c.Off = x.Off
			}
			c.End = x.End
			if e != entryZero {
				c.sums = append(c.sums, e)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// spread calls do with every chunk, several at a time. buf has room for one with content.
func (s *stage) spread(ctx context.Context, do func(ctx context.Context, c stageChunk, buf []byte) error) error {
	g, ctx := errgroup.WithContext(ctx)
	queue := make(chan stageChunk)
	g.Go(func() error {
		defer close(queue)
		return stageFailure(s.path, stageReading, s.chunks(func(c stageChunk) error {
			select {
			case queue <- c:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}))
	})
	for range stageHands {
		g.Go(func() error {
			buf := getBuf(int(max(chunkBytes, s.h.block)))
			defer buf.put()
			for c := range queue {
				if err := do(ctx, c, buf.b); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// content reads what is staged for c, which has content, and holds it against its
// checksums: with its place, should a bit have flipped (L9).
func (s *stage) content(c stageChunk, buf []byte, read func([]byte, int64) (int, error)) ([]byte, error) {
	b := buf[:c.Len()]
	if err := readAll(read, b, c.Off); err != nil {
		return nil, stageFailure(s.path, stageReading, err)
	}
	for i, sum := range c.sums {
		x := s.h.extent(c.Off/s.h.block + int64(i))
		if s.h.entry(x.Off/s.h.block, b[x.Off-c.Off:x.End-c.Off]) != sum {
			return nil, stageFailure(s.path, stageReading, stageCorrupt("what is staged for %v is not what was written there", x))
		}
	}
	return b, nil
}

// check reads all that is staged, and its index, from their medium: what is damaged is found before
// the target is touched. tick is told how many bytes of the target are done, from
// several goroutines, here and below.
func (s *stage) check(ctx context.Context, tick func(int64)) error {
	if err := s.checkIndex(); err != nil {
		return err
	}
	return s.spread(ctx, func(_ context.Context, c stageChunk, buf []byte) error {
		if c.sums != nil {
			if _, err := s.content(c, buf, s.data.ReadMediumAt); err != nil {
				return err
			}
		}
		tick(c.Len())
		return nil
	})
}

// lay writes what is staged to the target.
func (s *stage) lay(ctx context.Context, vol *meter, tick func(int64)) error {
	return s.spread(ctx, func(ctx context.Context, c stageChunk, buf []byte) error {
		var b []byte
		var err error
		if c.sums != nil {
			b, err = s.content(c, buf, s.data.ReadAt)
		}
		if c.Len() >= punchBytes && allZero(b) {
			b = nil // they take no space at the target, as at the source
		}
		switch {
		case err != nil:
		case b == nil && c.Len() < punchBytes:
			err = vol.writeAt(zeroes()[:c.Len()], c.Off)
		default:
			err = vol.restore(ctx, c.Extent, b)
		}
		if err == nil {
			tick(c.Len())
		}
		return err
	})
}

// prove reads the target back from its medium and compares it with what is staged (L7).
func (s *stage) prove(ctx context.Context, vol *meter, tick func(int64)) error {
	var wrong extentList
	err := s.spread(ctx, func(ctx context.Context, c stageChunk, buf []byte) error {
		var b []byte
		if c.sums != nil {
			var err error
			if b, err = s.content(c, buf, s.data.ReadAt); err != nil {
				return err
			}
		}
		err := s.compare(ctx, vol, c, b, &wrong)
		if err == nil {
			tick(c.Len())
		}
		return err
	})
	if err != nil {
		return err
	}
	if x := cbt.Normalize(wrong.list); len(x) > 0 {
		return &VerifyError{Volume: vol.name, Extent: x[0], Bytes: cbt.Total(x)}
	}
	return nil
}

// compare holds the medium of vol against a chunk, whose content is b.
func (s *stage) compare(ctx context.Context, vol *meter, c stageChunk, b []byte, wrong *extentList) error {
	room := getBuf(chunkBytes)
	defer room.put()
	for off := c.Off; off < c.End; {
		if err := ctx.Err(); err != nil {
			return err // zeroes may be as long as the volume
		}
		got := room.b[:min(int64(len(room.b)), c.End-off)]
		if err := vol.readMedium(got, off); err != nil {
			return err
		}
		if !holds(got, b, off-c.Off) {
			wrong.add(cbt.Extent{Off: off, End: off + int64(len(got))})
		}
		off += int64(len(got))
	}
	return nil
}

// apply makes of the target what is staged, durably, and proves it.
func (s *stage) apply(ctx context.Context, vol *meter, p *stageProgress) error {
	err := s.lay(ctx, vol, p.laid)
	if err == nil {
		err = vol.sync()
	}
	if err == nil {
		err = s.prove(ctx, vol, p.proved)
	}
	return err
}

// whole opens the stage of the session that was being applied, or says what is wrong
// with it. All of it is read, from its medium.
func (r *redo) whole(ctx context.Context, vol *meter) (*stage, error) {
	files, path := r.stages, r.rec.Stage
	h, err := readStageHead(files, path)
	if err != nil {
		return nil, err
	}
	switch {
	case h.session != r.rec.Run:
		err = errors.New("it is of another session")
	case h.state != stageWhole:
		err = stageCorrupt("it is not whole")
	case !h.of(path, undoVolume{Size: vol.v.Size(), Identity: clip(vol.identity()), Name: clip(r.name)}, r.place):
		err = fmt.Errorf("it is of the target %s (%q, %d bytes)", cleanText(h.target.Name), cleanText(h.target.Identity), h.target.Size)
	}
	if err != nil {
		return nil, stageFailure(path, stageReading, err)
	}
	s, err := openStage(files, path, h, vol)
	if err != nil {
		return nil, stageFailure(path, stageReading, err)
	}
	if err := s.check(ctx, r.p.looked); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}
