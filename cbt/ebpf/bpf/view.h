/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A view is one tracked volume: a disk, or a partition of it. view.go has the
 * table of its record; both sides are to change together, with the version.
 */
#pragma once

#include "kernel.h"

#define MAX_VIEWS 64 /* tracked volumes */
#define VIEW_SIZE 1024 /* bytes of a record */

/* The table of disks. */
#define DISK_VIEWS 8 /* tracked volumes on one disk */
#define DISK_BITS 8
#define DISK_PLACES (1 << DISK_BITS)
#define DISK_TRIES 16 /* how far from where its hash says a disk may be */
#define DISK_HASH 0x9e3779b1U /* 2^32 by the golden ratio: spreads numbers in a row */

struct view {
	__u64 start, end; /* sectors of the disk */
	__u32 shift; /* log2 of the sectors in a block */
	__u32 whole; /* the volume is the disk */
	__u64 words; /* of 64 blocks, in a plane */
	__u64 beyond; /* writes behind the end: the disk has grown */
	__u64 passthrough; /* commands that went around the block layer's writes */
	__u64 lost; /* marks that could not be set */
	__u64 strangers; /* ends of writes whose begin was not seen */
	__u8 user[VIEW_SIZE - 64]; /* user space's */
};

/* Planes of a bitmap, one after the other. */
#define PLANE_DIRTY 0
#define PLANE_DISCARDED 1

/* The blocks [first, end) of a plane of a view. */
struct span {
	void *bits;
	__u64 base; /* first word of the plane */
	__u64 unless; /* first word of a plane whose blocks are left out, 0: none */
	__u64 first, end; /* blocks */
	__u64 failed; /* a word could not be reached; a count would have no end for the verifier */
};

static __always_inline void set_word(struct span *s, __u64 word)
{
	__u64 from = word * 64, mask = ~0ULL;
	__u32 key = s->base + word;
	__u64 *p;

	if (s->first > from)
		mask &= ~0ULL << ((s->first - from) & 63);
	if (s->end < from + 64)
		mask &= ~0ULL >> ((from + 64 - s->end) & 63);
	if (s->unless) {
		__u32 other = s->unless + word;

		p = bpf_map_lookup_elem(s->bits, &other);
		if (p)
			mask &= ~*(volatile __u64 *)p;
		if (!mask)
			return;
	}
	p = bpf_map_lookup_elem(s->bits, &key);
	if (!p) {
		s->failed = 1;
		return;
	}
	/* A bit that is there now goes only by a take that comes later. */
	if ((*(volatile __u64 *)p & mask) != mask)
		__sync_fetch_and_or(p, mask);
}

static long set_nth(__u32 n, struct span *s)
{
	set_word(s, (s->first >> 6) + n);
	return 0;
}

/* set_span returns whether it failed to reach a word, in this span or before. */
static __always_inline __u64 set_span(struct span *s)
{
	__u64 word, count;

	if (s->first >= s->end)
		return 0;
	word = s->first >> 6;
	count = ((s->end - 1) >> 6) - word + 1;
	if (count == 1) {
		set_word(s, word);
	} else if (count == 2) {
		set_word(s, word);
		set_word(s, word + 1);
	} else {
		/* At most 2^23 sectors or 2^20 blocks: 2^14 words and one. */
		bpf_loop(count, set_nth, s, 0);
	}
	return s->failed;
}

/* What one request does to a disk. */
struct change {
	__u64 sector; /* of the disk */
	__u64 end;
	__u32 discard;
	__u32 ended; /* it was recorded before, when it was queued */
};

/*
 * mark_view records c in the bitmap of v: whole blocks of a discard as such,
 * all else as dirty.
 *
 * A discard that has ended is still recorded if no take came since it was
 * queued. Where one came, the block is dirty: it may have been written after
 * the discard, and that mark be taken, proven and gone.
 */
static __always_inline void mark_view(struct view *v, void *bits, struct change *c)
{
	__u64 from = c->sector, to = c->end, size = v->end - v->start;
	__u32 shift = v->shift & 31;
	__u64 up = (1ULL << shift) - 1;
	__u64 failed = 0;
	struct span s = { .bits = bits };

	if (v->whole && to > v->end)
		__sync_fetch_and_add(&v->beyond, 1);
	if (from < v->start)
		from = v->start;
	if (to > v->end)
		to = v->end;
	if (from >= to)
		return;
	from -= v->start;
	to -= v->start;

	s.first = from >> shift;
	s.end = (to + up) >> shift;
	if (!c->discard && s.first + 1 == s.end) {
		/* The most frequent write, without a loop. */
		__u32 key = s.first >> 6;
		__u64 mask = 1ULL << (s.first & 63);
		__u64 *p = bpf_map_lookup_elem(bits, &key);

		if (!p)
			__sync_fetch_and_add(&v->lost, 1);
		else if (!(*(volatile __u64 *)p & mask))
			__sync_fetch_and_or(p, mask);
		return;
	}
	if (c->discard) {
		__u64 first = (from + up) >> shift;
		__u64 end = to == size ? s.end : to >> shift;

		if (first < end) {
			__u64 last = s.end;

			s.end = first; /* the block cut in front */
			failed = set_span(&s);
			s.first = end; /* and behind */
			s.end = last;
			failed = set_span(&s);
			if (c->ended)
				s.unless = PLANE_DISCARDED * v->words;
			else
				s.base = PLANE_DISCARDED * v->words;
			s.first = first;
			s.end = end;
		}
	}
	failed = set_span(&s);
	if (failed)
		__sync_fetch_and_add(&v->lost, 1);
}

/* disk_of returns the kernel's number of the disk, 0 if there is none. */
static __always_inline __u32 disk_of(struct block_device *dev)
{
	struct gendisk *disk;
	struct block_device *whole;

	if (!dev)
		return 0;
	disk = dev->bd_disk;
	if (!disk)
		return 0;
	whole = disk->part0;
	return whole ? whole->bd_dev : 0;
}
