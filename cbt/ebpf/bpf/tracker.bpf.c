// SPDX-License-Identifier: GPL-2.0
/*
 * The programs that are there as long as a volume is tracked: they mark what
 * is written when it is queued.
 */
#include "view.h"

char LICENSE[] SEC("license") = "GPL";

/* A tracked disk, or a place for one. */
struct disk {
	__u32 number; /* the kernel's, 0: no disk was ever here */
	__u32 view[DISK_VIEWS]; /* number of a view plus 1, or 0 */
};

struct table {
	struct disk disk[DISK_PLACES];
};

/*
 * The tracked disks, by a hash of their number, or in the next free place behind.
 * User space fills the table (disks.go has the same). It is no hash map of the
 * kernel's because one look into that costs more than all the rest of a mark.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct table);
} disks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_VIEWS);
	__type(key, __u32);
	__type(value, struct view);
} views SEC(".maps");

struct bitmap {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_VIEWS);
	__type(key, __u32);
	__array(values, struct bitmap);
} bitmaps SEC(".maps");

struct count {
	__u64 writes; /* of any kind */
	__u64 discards;
	__u64 sectors;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_VIEWS);
	__type(key, __u32);
	__type(value, struct count);
} counts SEC(".maps");

static __always_inline struct disk *find_disk(__u32 number)
{
	__u32 at = (number * DISK_HASH) >> (32 - DISK_BITS), zero = 0;
	struct table *t = bpf_map_lookup_elem(&disks, &zero);
	int i;

	if (!t || !number)
		return 0;
	for (i = 0; i < DISK_TRIES; i++) {
		struct disk *d = &t->disk[(at + i) & (DISK_PLACES - 1)];

		if (d->number == number)
			return d;
		if (!d->number)
			return 0;
	}
	return 0;
}

/* A bio's sector is the disk's here, also when it was sent to a partition. */
SEC("tp_btf/block_bio_queue")
int BPF_PROG(mark_queued, struct bio *bio)
{
	__u32 op = bio->bi_opf & OP_MASK;
	__u32 bytes = bio->bi_iter.bi_size;
	struct change c = {};
	struct disk *d;
	int i;

	if (!(op & 1))
		return 0;
	d = find_disk(disk_of(bio->bi_bdev));
	if (!d)
		return 0;
	c.sector = bio->bi_iter.bi_sector;
	c.end = c.sector + (bytes >> 9);
	c.discard = op == OP_DISCARD || op == OP_SECURE_ERASE;
	for (i = 0; i < DISK_VIEWS; i++) {
		__u32 key = d->view[i] - 1;
		struct count *n;
		struct view *v;
		void *bits;

		if (key >= MAX_VIEWS)
			continue;
		v = bpf_map_lookup_elem(&views, &key);
		if (!v)
			continue;
		if (!bytes) { /* a flush, or an operation that says no range */
			if (op != OP_WRITE)
				__sync_fetch_and_add(&v->lost, 1);
			continue;
		}
		if (c.end <= v->start || (c.sector >= v->end && !v->whole))
			continue;
		bits = bpf_map_lookup_elem(&bitmaps, &key);
		if (!bits) {
			__sync_fetch_and_add(&v->lost, 1);
			continue;
		}
		mark_view(v, bits, &c);
		n = bpf_map_lookup_elem(&counts, &key);
		if (n) {
			n->writes++;
			n->discards += c.discard;
			n->sectors += c.end - c.sector;
		}
	}
	return 0;
}

/* Commands from user space are requests without a write: they are counted. */
SEC("tp_btf/block_rq_issue")
int BPF_PROG(see_passthrough, struct request *rq)
{
	struct request_queue *q;
	struct gendisk *disk;
	struct block_device *whole;
	struct disk *d;
	int i;

	if ((rq->cmd_flags & OP_MASK) != OP_DRV_OUT)
		return 0;
	q = rq->q;
	if (!q)
		return 0;
	disk = q->disk;
	if (!disk)
		return 0;
	whole = disk->part0;
	if (!whole)
		return 0;
	d = find_disk(whole->bd_dev);
	if (!d)
		return 0;
	for (i = 0; i < DISK_VIEWS; i++) {
		__u32 key = d->view[i] - 1;
		struct view *v;

		if (key >= MAX_VIEWS)
			continue;
		v = bpf_map_lookup_elem(&views, &key);
		if (v)
			__sync_fetch_and_add(&v->passthrough, 1);
	}
	return 0;
}
