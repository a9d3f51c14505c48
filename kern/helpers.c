// SPDX-License-Identifier: GPL-2.0

/* Inline functions and macros of the kernel that Rust cannot express. */

#include <linux/blk-cgroup.h>
#include <linux/cgroup.h>
#include <linux/cpumask.h>
#include <linux/fcntl.h>
#include <linux/kthread.h>
#include <linux/magic.h>
#include <linux/memcontrol.h>
#include <linux/mount.h>
#include <linux/mutex.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/sched/isolation.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/statfs.h>
#include <linux/timekeeping.h>
#include <linux/wait_bit.h>

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

/*
 * Whether @rq, a read, fills a page cache, as far as it can be told: folios that
 * are being read are locked.
 */
bool rnull_loop_rq_fills_cache(struct request *rq)
{
	return folio_test_locked(page_folio(bio_page(rq->bio)));
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

/*
 * What bdev_add() does, which is over when the limits change: the page cache of
 * @disk waits for writeback where its queue wants that.
 */
void rnull_loop_inherit_stable_writes(struct gendisk *disk)
{
	struct address_space *mapping = disk->part0->bd_mapping;

	if (bdev_stable_writes(disk->part0))
		mapping_set_stable_writes(mapping);
	else
		mapping_clear_stable_writes(mapping);
}

unsigned int rnull_loop_freeze_queue(struct request_queue *q)
{
	return blk_mq_freeze_queue(q);
}

void rnull_loop_queue_get(struct request_queue *q)
{
	percpu_ref_get(&q->q_usage_counter);
}

void rnull_loop_queue_put(struct request_queue *q)
{
	percpu_ref_put(&q->q_usage_counter);
}

/*
 * The caller, called by the block layer under the SRCU lock of @q's tag set, goes
 * to devices that @q stands on. Whoever waits for that lock waits for them, which
 * is no circle; but lockdep takes the locks of all tag sets for one, and what a
 * file system on @q holds for what the same type of file system below it does.
 */
void rnull_loop_queue_hide_srcu(struct request_queue *q)
{
	srcu_lock_release(&q->tag_set->srcu->dep_map);
}

void rnull_loop_queue_show_srcu(struct request_queue *q)
{
	srcu_lock_acquire(&q->tag_set->srcu->dep_map);
}

/*
 * Whether there are requests on @q, or there may be. What the caller did before
 * is seen by requests that are handed to the driver later, and what was done to
 * requests that are gone happened before the caller goes on.
 */
bool rnull_loop_queue_has_requests(struct request_queue *q)
{
	struct blk_mq_hw_ctx *hctx;
	unsigned long i;

	/* Pairs with __srcu_read_lock() before ->queue_rq(), after the tag. */
	smp_mb();
	/* Those of a scheduler have no tag at times. */
	if (q->elevator)
		return true;
	queue_for_each_hw_ctx(q, hctx, i) {
		struct blk_mq_tags *tags = hctx->tags;

		if (tags && (sbitmap_any_bit_set(&tags->bitmap_tags.sb) ||
			     sbitmap_any_bit_set(&tags->breserved_tags.sb)))
			return true;
	}
	/* Pairs with the barrier before a tag is cleared. */
	smp_mb();
	return false;
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

/*
 * The first block device of @disk from number *@partno on, with a reference, and
 * its number; NULL if there is none. 0 is the disk itself. Those that nobody has
 * a reference to any more are left out.
 */
struct block_device *rnull_loop_get_part(struct gendisk *disk,
					 unsigned long *partno)
{
	struct block_device *bdev;

	rcu_read_lock();
	xa_for_each_start(&disk->part_tbl, *partno, bdev, *partno) {
		if (kobject_get_unless_zero(&bdev->bd_device.kobj))
			break;
	}
	rcu_read_unlock();
	return bdev;
}

/*
 * Whether there are references to @disk but the caller's. The disk is not hashed
 * (any more), but blkdev_get_no_open() may have its inode already, and about to
 * take one to the disk for it: so the inode comes first. A partition in the same
 * place holds one to the disk, as long as there is one to the partition.
 */
bool rnull_loop_disk_is_shared(struct gendisk *disk)
{
	if (atomic_read(&disk->part0->bd_mapping->host->i_count) > 1)
		return true;
	/* Pairs with the full barrier of iput(). */
	smp_rmb();
	return kref_read(&disk_to_dev(disk)->kobj.kref) > 1;
}

/* Under open_mutex. */
bool rnull_loop_disk_has_partitions(struct gendisk *disk)
{
	unsigned long partno = 0;

	return xa_find_after(&disk->part_tbl, &partno, ULONG_MAX, XA_PRESENT);
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

bool rnull_loop_bdev_nowait(struct block_device *bdev)
{
	return bdev_nowait(bdev);
}

unsigned int rnull_loop_bdev_max_bytes(struct block_device *bdev)
{
	u64 bytes = (u64)queue_max_sectors(bdev_get_queue(bdev)) << SECTOR_SHIFT;

	return min_t(u64, bytes, UINT_MAX);
}

/*
 * Whether blkdev_read_iter() or blkdev_write_iter() would do direct I/O of @len
 * bytes at @pos. A dm table may change the size and the blocks at any time.
 */
bool rnull_loop_bdev_admits(struct block_device *bdev, bool write, u64 pos,
			    unsigned int len)
{
	if (pos + len > bdev_nr_bytes(bdev) ||
	    ((pos | len) & (bdev_logical_block_size(bdev) - 1)))
		return false;
	return !write || (!bdev_read_only(bdev) &&
			  !IS_SWAPFILE(bdev->bd_mapping->host));
}

/*
 * As kiocb_start_write() and kiocb_end_write(): of all files, as writing to a block
 * device changes the times of its node, and by tasks of which one may end what
 * another has started.
 */
void rnull_loop_file_start_write(struct file *file)
{
	struct super_block *sb = file_inode(file)->i_sb;

	sb_start_write(sb);
	__sb_writers_release(sb, SB_FREEZE_WRITE);
}

/* As above, but fails where that would wait for a frozen file system. */
bool rnull_loop_file_start_write_trylock(struct file *file)
{
	struct super_block *sb = file_inode(file)->i_sb;

	if (!sb_start_write_trylock(sb))
		return false;
	__sb_writers_release(sb, SB_FREEZE_WRITE);
	return true;
}

void rnull_loop_file_end_write(struct file *file)
{
	struct super_block *sb = file_inode(file)->i_sb;

	__sb_writers_acquired(sb, SB_FREEZE_WRITE);
	sb_end_write(sb);
}

/*
 * Whether every write to @file fails, though it may be open for writing: since
 * it was opened, the inode became immutable, append-only or swap space, the
 * memfd was sealed, or the block device or the file system became read-only.
 */
bool rnull_loop_file_refuses_writes(struct file *file)
{
	struct inode *inode = file->f_mapping->host;

	if (IS_RDONLY(inode) || IS_IMMUTABLE(inode) || IS_APPEND(inode) ||
	    IS_SWAPFILE(inode))
		return true;
	if (S_ISBLK(inode->i_mode))
		return bdev_read_only(I_BDEV(inode));
	return shmem_mapping(file->f_mapping) &&
	       READ_ONCE(SHMEM_I(inode)->seals) &
		       (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE);
}

loff_t rnull_loop_i_size_read(struct file *file)
{
	return i_size_read(file->f_mapping->host);
}

/*
 * Whether reading @file now will not change its access time, for which a file
 * system may have to wait: what atime_needs_update(), which modules cannot
 * call, says, or true less often.
 */
bool rnull_loop_atime_settled(struct file *file)
{
	struct inode *inode = file_inode(file);
	int mnt_flags = READ_ONCE(file->f_path.mnt->mnt_flags);
	struct timespec64 atime, mtime, ctime;

	if ((file->f_flags & O_NOATIME) || (mnt_flags & MNT_NOATIME) ||
	    (inode->i_flags & S_NOATIME) || IS_NOATIME(inode))
		return true;
	if (!(mnt_flags & MNT_RELATIME))
		return false;
	atime = inode_get_atime(inode);
	mtime = inode_get_mtime(inode);
	ctime = inode_get_ctime(inode);
	return timespec64_compare(&mtime, &atime) < 0 &&
	       timespec64_compare(&ctime, &atime) < 0 &&
	       ktime_get_real_seconds() - atime.tv_sec < 24 * 60 * 60;
}

/*
 * Whether a write to @file that ends at @end, in place, is the same whoever
 * writes: there is no limit on file sizes and no privilege to be taken away,
 * and the file does not grow.
 */
bool rnull_loop_write_is_anonymous(struct file *file, loff_t end)
{
	struct inode *inode = file_inode(file);

	return rlimit(RLIMIT_FSIZE) == RLIM_INFINITY && IS_NOSEC(inode) &&
	       end <= i_size_read(file->f_mapping->host);
}

const struct path *rnull_loop_file_path(struct file *file)
{
	return &file->f_path;
}

/*
 * The block device that the file system of @file lives on, with a reference, or
 * NULL. btrfs may exchange and close it at any time.
 */
struct block_device *rnull_loop_get_sb_bdev(struct file *file)
{
	struct block_device *bdev;

	rcu_read_lock();
	bdev = READ_ONCE(file->f_mapping->host->i_sb->s_bdev);
	if (bdev && !kobject_get_unless_zero(&bdev->bd_device.kobj))
		bdev = NULL;
	rcu_read_unlock();
	return bdev;
}

/*
 * Whether what is being written to @file must not change: checksums, parity. The
 * mapping of a block device knows what was so when the device was added.
 */
bool rnull_loop_file_stable_writes(struct file *file)
{
	struct inode *inode = file->f_mapping->host;

	if (S_ISBLK(inode->i_mode))
		return bdev_stable_writes(I_BDEV(inode));
	return mapping_stable_writes(file->f_mapping);
}

/*
 * Whether IOCB_DSYNC makes a write to @file durable, for certain. Direct writes to
 * blocks that are there are not followed by a sync where the disk has FUA, unless
 * the file system says (IOMAP_F_DIRTY) that it has yet to write where they are.
 * XFS always does. btrfs never does, f2fs forgets after the first write, and so
 * does ext4 without a journal, and at times with fast commits, which cannot be
 * seen from here. ocfs2 looks at the flags of the file instead, and servers of
 * FUSE do what they like.
 */
bool rnull_loop_file_honours_dsync(struct file *file)
{
	struct inode *inode = file->f_mapping->host;

	if (S_ISBLK(inode->i_mode))
		return true;
	return inode->i_sb->s_magic == XFS_SUPER_MAGIC;
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

/* Whether bios of the current task would be for the block cgroup of the first bio of @rq. */
bool rnull_loop_rq_is_of_current_blkcg(struct request *rq)
{
#ifdef CONFIG_BLK_CGROUP
	bool is;

	rcu_read_lock();
	is = rq->bio && bio_blkcg_css(rq->bio) == task_css(current, io_cgrp_id);
	rcu_read_unlock();
	return is;
#else
	return true;
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

/* The next two are inline functions that do nothing without CONFIG_BLK_CGROUP. */
void rnull_loop_bio_clone_blkg_association(struct bio *dst, struct bio *src)
{
	bio_clone_blkg_association(dst, src);
}

void rnull_loop_kthread_associate_blkcg(struct cgroup_subsys_state *css)
{
	kthread_associate_blkcg(css);
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

/* A macro where lockdep is built in. */
int rnull_loop_mutex_lock_killable(struct mutex *lock)
{
	return mutex_lock_killable(lock);
}

/*
 * Waits until *@count is @value; see rnull_loop_wake_up_count(). What others did
 * before they changed *@count is visible to the caller.
 */
void rnull_loop_wait_for_count(atomic_t *count, int value)
{
	wait_var_event(count, atomic_read_acquire(count) == value);
}

/* To be called behind a full barrier after *@count has changed. */
void rnull_loop_wake_up_count(atomic_t *count)
{
	wake_up_var(count);
}

void rnull_loop_cond_resched(void)
{
	cond_resched();
}

void rnull_loop_plug_invalidate_ts(void)
{
	blk_plug_invalidate_ts();
}

unsigned int rnull_loop_num_online_cpus(void)
{
	return num_online_cpus();
}

/* Whether the current CPU, of isolcpus= or of an isolated cpuset, is to be left alone. */
bool rnull_loop_on_isolated_cpu(void)
{
	bool isolated;

	rcu_read_lock();
	isolated = !housekeeping_cpu(raw_smp_processor_id(), HK_TYPE_DOMAIN);
	rcu_read_unlock();
	return isolated;
}

/* The current CPU, or one nearby if that is isolated. */
int rnull_loop_housekeeping_cpu(void)
{
	int cpu = get_cpu();

	if (!housekeeping_cpu(cpu, HK_TYPE_DOMAIN))
		cpu = housekeeping_any_cpu(HK_TYPE_DOMAIN);
	put_cpu();
	return cpu;
}
