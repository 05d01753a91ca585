/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the programs read of the kernel, and nothing else of it. The loader puts
 * the running kernel's offsets in (preserve_access_index), so only names and
 * types count here, and a build needs no kernel headers.
 */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed int __s32;
typedef signed long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

/* Numbers of the bpf(2) interface. */
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_ARRAY_OF_MAPS = 12,
};
enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_F_MMAPABLE = 1 << 10,
	BPF_F_INNER_MAP = 1 << 12,
};

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct gendisk;

struct block_device {
	__u32 bd_dev;
	struct gendisk *bd_disk;
};

#define NAME_SIZE 32 /* bytes of a disk's name, with a zero at its end */

struct gendisk {
	struct block_device *part0;
	char disk_name[NAME_SIZE];
};

struct bvec_iter {
	__u64 bi_sector;
	__u32 bi_size;
};

typedef struct {
	int counter;
} atomic_t;

struct bio {
	struct bio *bi_next;
	struct block_device *bi_bdev;
	__u32 bi_opf;
	__u16 bi_flags;
	__u8 bi_status;
	atomic_t __bi_remaining;
	struct bvec_iter bi_iter;
	void *bi_end_io;
	void *bi_private;
	void *bi_io_vec;
};

struct request_queue {
	struct gendisk *disk;
};

struct request {
	struct request_queue *q;
	__u32 cmd_flags;
	__u32 __data_len;
	__u64 __sector;
	struct bio *bio;
};

#pragma clang attribute pop

/* A bit of bi_flags: the bio shares its pages with the one that it was made of. */
#define BIO_CLONED (1 << 1)

/* Operations. Those that change a device have odd numbers. */
#define OP_MASK 0xff
#define OP_WRITE 1
#define OP_DISCARD 3
#define OP_SECURE_ERASE 5
#define OP_DRV_OUT 35
