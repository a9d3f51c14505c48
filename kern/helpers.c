// SPDX-License-Identifier: GPL-2.0

/* Inline functions and macros of the kernel that Rust cannot express. */

#include <linux/blk-cgroup.h>
#include <linux/cgroup.h>
#include <linux/cpumask.h>
#include <linux/memcontrol.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/statfs.h>

#include "helpers.h"

unsigned int rnull_loop_rq_nr_bvec(struct request *rq)
{
	return blk_rq_nr_bvec(rq);
}

/* Copies up to @max bvecs of @rq to @to, and returns how many that were. */
unsigned int rnull_loop_rq_copy_bvecs(struct request *rq, struct bio_vec *to,
				      unsigned int max)
{
	struct req_iterator iter;
	struct bio_vec bvec;
	unsigned int nr = 0;

	rq_for_each_bvec(bvec, rq, iter) {
		if (nr == max)
			break;
		to[nr++] = bvec;
	}
	return nr;
}

void rnull_loop_rq_zero_fill(struct request *rq)
{
	struct bio *bio;

	__rq_for_each_bio(bio, rq)
		zero_fill_bio(bio);
}

bool rnull_loop_should_fake_timeout(struct request_queue *q)
{
	return blk_should_fake_timeout(q);
}

struct queue_limits rnull_loop_limits_start_update(struct request_queue *q)
{
	return queue_limits_start_update(q);
}

void rnull_loop_limits_cancel_update(struct request_queue *q)
{
	queue_limits_cancel_update(q);
}

unsigned int rnull_loop_freeze_queue(struct request_queue *q)
{
	return blk_mq_freeze_queue(q);
}

void rnull_loop_unfreeze_queue(struct request_queue *q, unsigned int memflags)
{
	blk_mq_unfreeze_queue(q, memflags);
}

void rnull_loop_disable_discard(struct request_queue *q)
{
	blk_queue_disable_discard(q);
}

void rnull_loop_disable_write_zeroes(struct request_queue *q)
{
	blk_queue_disable_write_zeroes(q);
}

unsigned int rnull_loop_disk_openers(struct gendisk *disk)
{
	return disk_openers(disk);
}

struct device *rnull_loop_disk_to_dev(struct gendisk *disk)
{
	return disk_to_dev(disk);
}

struct gendisk *rnull_loop_dev_to_disk(struct device *dev)
{
	return dev_to_disk(dev);
}

void rnull_loop_set_uevent_suppress(struct gendisk *disk, bool on)
{
	dev_set_uevent_suppress(disk_to_dev(disk), on);
}

unsigned int rnull_loop_bdev_write_zeroes_sectors(struct block_device *bdev)
{
	return bdev_write_zeroes_sectors(bdev);
}

unsigned int rnull_loop_bdev_discard_granularity(struct block_device *bdev)
{
	return bdev_discard_granularity(bdev);
}

bool rnull_loop_bdev_rot(struct block_device *bdev)
{
	return bdev_rot(bdev);
}

unsigned int rnull_loop_bdev_logical_block_size(struct block_device *bdev)
{
	return bdev_logical_block_size(bdev);
}

unsigned int rnull_loop_bdev_dma_alignment(struct block_device *bdev)
{
	return bdev_dma_alignment(bdev);
}

void rnull_loop_kiocb_start_write(struct kiocb *iocb)
{
	kiocb_start_write(iocb);
}

void rnull_loop_kiocb_end_write(struct kiocb *iocb)
{
	kiocb_end_write(iocb);
}

loff_t rnull_loop_i_size_read(struct file *file)
{
	return i_size_read(file->f_mapping->host);
}

const struct path *rnull_loop_file_path(struct file *file)
{
	return &file->f_path;
}

/* The block device that the file system of @file lives on, or NULL. */
struct block_device *rnull_loop_sb_bdev(struct file *file)
{
	return file->f_mapping->host->i_sb->s_bdev;
}

int rnull_loop_fs_block_size(struct file *file, unsigned int *size)
{
	struct kstatfs sbuf;
	int ret = vfs_statfs(&file->f_path, &sbuf);

	if (!ret)
		*size = sbuf.f_bsize;
	return ret;
}

/*
 * The block cgroup of the first bio of @rq, or NULL when that is the root or
 * there is none. The bio keeps it alive.
 */
struct cgroup_subsys_state *rnull_loop_rq_blkcg_css(struct request *rq)
{
#ifdef CONFIG_BLK_CGROUP
	struct cgroup_subsys_state *css;

	if (!rq->bio)
		return NULL;
	css = bio_blkcg_css(rq->bio);
	return css == blkcg_root_css ? NULL : css;
#else
	return NULL;
#endif
}

/* The memory cgroup that belongs to @blkcg_css, with a reference, or NULL. */
struct cgroup_subsys_state *
rnull_loop_memcg_css(struct cgroup_subsys_state *blkcg_css)
{
#if defined(CONFIG_BLK_CGROUP) && defined(CONFIG_MEMCG)
	return cgroup_get_e_css(blkcg_css->cgroup, &memory_cgrp_subsys);
#else
	return NULL;
#endif
}

void rnull_loop_css_put(struct cgroup_subsys_state *css)
{
	css_put(css);
}

struct mem_cgroup *
rnull_loop_set_active_memcg(struct cgroup_subsys_state *css)
{
	return set_active_memcg(mem_cgroup_from_css(css));
}

void rnull_loop_restore_active_memcg(struct mem_cgroup *old)
{
	set_active_memcg(old);
}

void rnull_loop_cond_resched(void)
{
	cond_resched();
}

unsigned int rnull_loop_num_online_cpus(void)
{
	return num_online_cpus();
}
