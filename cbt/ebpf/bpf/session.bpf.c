// SPDX-License-Identifier: GPL-2.0
/*
 * The programs that are there while a session reads one view: they mark what
 * is written once more when it has ended. A mark of the queue may be taken and
 * its block read before the write lands; this one comes after.
 */
#include "view.h"

char LICENSE[] SEC("license") = "GPL";

/* Set by the loader. */
const volatile __u32 disk_number = 0;
const volatile __u32 view_number = 0;
const volatile __u32 by_request = 0; /* the disk's requests tell their place to the end */
const volatile char paths_of[NAME_SIZE] = ""; /* the disk, if it is NVMe's paths to one taken together */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_VIEWS);
	__type(key, __u32);
	__type(value, struct view);
} views SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} bitmap SEC(".maps");

struct place {
	__u64 sector; /* of the disk */
	__u64 end;
};

/* Where a bio began: at its end its iterator has moved on. Of a disk that is not
 * driven by requests. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, __u64); /* address of the bio */
	__type(value, struct place);
} inflight SEC(".maps");

static __always_inline int is_discard(__u32 opf)
{
	__u32 op = opf & OP_MASK;

	return op == OP_DISCARD || op == OP_SECURE_ERASE;
}

/* A discard that failed may have changed anything: it counts as a write. */
static __always_inline void mark(__u64 sector, __u64 end, int discard)
{
	struct change c = { .sector = sector, .end = end, .discard = discard, .ended = 1 };
	__u32 key = view_number;
	struct view *v = bpf_map_lookup_elem(&views, &key);

	if (v)
		mark_view(v, &bitmap, &c);
}

static __always_inline void count_stranger(void)
{
	__u32 key = view_number;
	struct view *v = bpf_map_lookup_elem(&views, &key);

	if (v)
		__sync_fetch_and_add(&v->strangers, 1);
}

SEC("tp_btf/block_bio_queue")
int BPF_PROG(remember_bio, struct bio *bio)
{
	__u32 bytes = bio->bi_iter.bi_size;
	__u64 key = (__u64)bio;
	struct place at, *before;

	/* The end of a bio inside of a request is not told: nobody would forget it,
	 * and the next bio at this address may be of any disk. */
	if (by_request || !(bio->bi_opf & 1) || !bytes || disk_of(bio->bi_bdev) != disk_number)
		return 0;
	at.sector = bio->bi_iter.bi_sector;
	at.end = at.sector + (bytes >> 9);
	if (!bpf_map_update_elem(&inflight, &key, &at, BPF_NOEXIST))
		return 0;
	/* Full, say: its end is a stranger's then. Or the end of what was at this
	 * address has passed mark_bio by: that has ended, as is known now. */
	before = bpf_map_lookup_elem(&inflight, &key);
	if (before) {
		mark(before->sector, before->end, 0);
		*before = at;
	}
	return 0;
}

/* ended marks a bio that was remembered, and forgets it unless it goes on. */
static __always_inline int ended(__u64 key, int discard, int goes_on)
{
	struct place *at = bpf_map_lookup_elem(&inflight, &key);
	struct place copy;

	if (!at)
		return 0;
	copy = *at;
	if (!goes_on)
		bpf_map_delete_elem(&inflight, &key);
	mark(copy.sector, copy.end, discard);
	return 1;
}

#define MAX_SPLITS 4 /* of splits */

/* Whether a bio is not over when what is left of it has ended: there are parts that
 * were split off it. */
static __always_inline int has_parts(struct bio *bio)
{
	return BPF_CORE_READ(bio, __bi_remaining.counter) > 1;
}

/*
 * The address of the remembered bio that a driver has split this one off, 0 if there
 * is none; more is set if that one has other parts yet, or what lies between.
 *
 * A part is a clone, and the kernel keeps at it whose part it is; a part of a part
 * ends by the same function. Bios that are only chained, one request made of many,
 * are no clones, and each of them is queued for itself.
 */
static __always_inline __u64 part_of(struct bio *bio, int *more)
{
	void *end_io = BPF_CORE_READ(bio, bi_end_io);
	__u64 whole = (__u64)BPF_CORE_READ(bio, bi_private);
	__u32 flags = BPF_CORE_READ(bio, bi_flags);
	int i;

	*more |= has_parts(bio);
	for (i = 0; i < MAX_SPLITS; i++) {
		struct bio *next = (struct bio *)whole;

		if (!(flags & BIO_CLONED) || !whole)
			return 0;
		*more |= has_parts(next);
		if (bpf_map_lookup_elem(&inflight, &whole))
			return whole;
		if (BPF_CORE_READ(next, bi_end_io) != end_io)
			return 0;
		flags = BPF_CORE_READ(next, bi_flags);
		whole = (__u64)BPF_CORE_READ(next, bi_private);
	}
	return 0;
}

/* A flush without data changes nothing. */
static __always_inline int is_flush(struct bio *bio)
{
	return (BPF_CORE_READ(bio, bi_opf) & OP_MASK) == OP_WRITE && !BPF_CORE_READ(bio, bi_io_vec);
}

/* Whether a bio that is not remembered has changed the disk. What it is a part of
 * ends after all its parts, and what is marked then is where that began, all of it. */
static __always_inline int is_stranger(struct bio *bio)
{
	int more = 0;

	return !is_flush(bio) && !part_of(bio, &more);
}

/* By address first: a driver may have sent the same bio on to another disk. */
SEC("tp_btf/block_bio_complete")
int BPF_PROG(mark_bio, struct request_queue *q, struct bio *bio)
{
	int goes_on;

	/* A bio that ends outside of a request on such a disk has never got to it. */
	if (by_request || !(bio->bi_opf & 1))
		return 0;
	/* Of some requests on a path the first bio is told of here, and then all of
	 * them in mark_request: what has its length yet has not ended. */
	goes_on = paths_of[0] && bio->bi_iter.bi_size;
	if (!ended((__u64)bio, !bio->bi_status && is_discard(bio->bi_opf), goes_on) &&
	    disk_of(bio->bi_bdev) == disk_number && is_stranger(bio))
		count_stranger();
	return 0;
}

/*
 * Whether a bio is for a path of the disk: nvme0c1n2 is one of nvme0n2. What puts
 * them together sends the same bio on, and tells nobody of its end.
 */
static __always_inline int on_path(struct bio *bio)
{
	struct gendisk *disk;
	char name[NAME_SIZE] = "";
	int i, at = 0, path = 0, skip = 0;

	if (!paths_of[0])
		return 0;
	disk = BPF_CORE_READ(bio, bi_bdev, bd_disk);
	if (!disk)
		return 0;
	BPF_CORE_READ_STR_INTO(&name, disk, disk_name);
	for (i = 0; i < NAME_SIZE; i++) {
		if (name[i] == 'c')
			skip = path = 1;
		else if (name[i] == 'n')
			skip = 0;
		if (skip)
			continue;
		if (name[i] != paths_of[at & (NAME_SIZE - 1)])
			return 0;
		if (!name[i])
			return path;
		at++;
	}
	return 0;
}

/* The bios of a request, from the first one that has not ended. */
struct walk {
	__u64 bio; /* address */
	__u64 discard;
	__u64 goes_on; /* the request ends in part only */
};

/*
 * end_on_path is for a bio that is not remembered. It may be a part of one that is:
 * of the parts of a bio, what is left of it among them, each ends as it comes, and
 * nobody tells of the last one.
 */
static __always_inline void end_on_path(struct bio *bio, struct walk *w)
{
	int more = w->goes_on;
	__u64 whole = part_of(bio, &more);

	if (whole)
		ended(whole, w->discard, more);
	else if (BPF_CORE_READ(bio, bi_iter.bi_size))
		count_stranger();
	/* A flush, or a write that has ended before: the kernel tells of a request
	 * again when the flush that goes with it is done. */
}

static long walk_bio(__u32 n, struct walk *w)
{
	struct bio *bio = (struct bio *)w->bio;

	if (!bio)
		return 1;
	if (by_request) {
		__u64 sector = BPF_CORE_READ(bio, bi_iter.bi_sector);
		__u32 bytes = BPF_CORE_READ(bio, bi_iter.bi_size);

		mark(sector, sector + (bytes >> 9), w->discard);
	} else if (!ended(w->bio, w->discard, w->goes_on || has_parts(bio)) && on_path(bio)) {
		end_on_path(bio, w);
	}
	w->bio = (__u64)BPF_CORE_READ(bio, bi_next);
	return 0;
}

/*
 * A command from user space was counted when it was issued. It may have been
 * before the last seal, which put that right, or before there were programs: what
 * is read from then on may be read before the command has changed it.
 */
static __always_inline void count_passthrough(void)
{
	__u32 key = view_number;
	struct view *v = bpf_map_lookup_elem(&views, &key);

	if (v)
		__sync_fetch_and_add(&v->passthrough, 1);
}

#define MAX_BIOS 65536 /* of a request */

SEC("tp_btf/block_rq_complete")
int BPF_PROG(mark_request, struct request *rq, __u32 error, __u32 bytes)
{
	struct request_queue *q;
	struct gendisk *disk;
	struct block_device *whole;
	struct walk w = {};
	int discard;

	if (!(rq->cmd_flags & 1))
		return 0;
	discard = is_discard(rq->cmd_flags);
	w.bio = (__u64)rq->bio;
	w.discard = discard && !error;
	w.goes_on = bytes < rq->__data_len;
	if (by_request) {
		q = rq->q;
		disk = q ? q->disk : 0;
		whole = disk ? disk->part0 : 0;
		if (!whole || whole->bd_dev != disk_number)
			return 0;
		if ((rq->cmd_flags & OP_MASK) == OP_DRV_OUT) {
			count_passthrough();
			return 0;
		}
		/* Also what ended in part, and in error: what is there then is not known. */
		if (!discard && rq->__data_len) {
			mark(rq->__sector, rq->__sector + ((rq->__data_len + 511) >> 9), 0);
			return 0;
		}
		/* The ranges of one request to discard need not be next to each other. */
	}
	bpf_loop(MAX_BIOS, walk_bio, &w, 0);
	if (w.bio)
		count_stranger();
	return 0;
}
