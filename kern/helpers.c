// SPDX-License-Identifier: GPL-2.0

/*
 * Inline functions and macros of the kernel that Rust code cannot call, and the
 * completion of requests, which counts in a per-CPU variable.
 */

#include <linux/blk-cgroup.h>
#include <linux/cgroup.h>
#include <linux/cpumask.h>
#include <linux/fcntl.h>
#include <linux/filelock.h>
#include <linux/kernel_stat.h>
#include <linux/kthread.h>
#include <linux/llist.h>
#include <linux/magic.h>
#include <linux/memcontrol.h>
#include <linux/mount.h>
#include <linux/mutex.h>
#include <linux/pagemap.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/sched/isolation.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/statfs.h>
#include <linux/timekeeping.h>
#include <linux/wait_bit.h>
#include <linux/workqueue.h>

#include "helpers.h"

unsigned int rnull_loop_rq_nr_bvec(struct request *rq)
{
	return blk_rq_nr_bvec(rq);
}

unsigned int rnull_loop_bio_nr_bvec(struct bio *bio)
{
	struct bvec_iter iter;
	struct bio_vec bvec;
	unsigned int nr = 0;

	bio_for_each_bvec(bvec, bio, iter)
		nr++;
	return nr;
}

/* Copies up to @max bvecs of @rq to @to, and returns the number of copied bvecs. */
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
 * The end of a request ends one of each device above it, within this call. So
 * many levels leave enough of any stack.
 */
#define MAX_ENDS 8

static DEFINE_PER_CPU(unsigned int, ends);
static LLIST_HEAD(deep_ends);

static void rnull_loop_end_deep(struct work_struct *work)
{
	struct llist_node *list = llist_reverse_order(llist_del_all(&deep_ends));
	struct request *rq, *next;

	llist_for_each_entry_safe(rq, next, list, ipi_list)
		rq->q->mq_ops->complete(rq);
}

static DECLARE_WORK(deep_ends_work, rnull_loop_end_deep);

/*
 * Completes @rq, which ends by ->complete(): within this call or, if that is
 * within the ends of too many others on this CPU, later in a softirq.
 */
void rnull_loop_complete_request(struct request *rq)
{
	/* The timeout handler leaves it alone from here on. */
	blk_mq_set_request_complete(rq);
	/* On PREEMPT_RT, preempted tasks are counted for others: harmless. */
	if (IS_ENABLED(CONFIG_PREEMPT_RT))
		migrate_disable();
	else
		preempt_disable();
	if (this_cpu_inc_return(ends) <= MAX_ENDS)
		rq->q->mq_ops->complete(rq);
	else if (llist_add(&rq->ipi_list, &deep_ends))
		queue_work(system_bh_wq, &deep_ends_work);
	this_cpu_dec(ends);
	if (IS_ENABLED(CONFIG_PREEMPT_RT))
		migrate_enable();
	else
		preempt_enable();
}

/* Waits until the work above has returned from the end of earlier requests. */
void rnull_loop_flush_completions(void)
{
	flush_work(&deep_ends_work);
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
 * Makes the page cache of @disk wait for writeback before a page changes, if the
 * queue wants stable writes. bdev_add() does so once; this is for later changes
 * of the limits.
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
 * Hides the SRCU read lock of @q's tag set, which the block layer holds around
 * ->queue_rq(), from lockdep. The caller submits I/O to lower devices and file
 * systems in that call. A task that waits for the SRCU lock also waits for them,
 * which is no cycle. But lockdep has one class for the locks of all tag sets, and
 * one for the locks of all file systems of a type, and would report a cycle.
 */
void rnull_loop_queue_hide_srcu(struct request_queue *q)
{
	srcu_lock_release(&q->tag_set->srcu->dep_map);
}

/* Undoes rnull_loop_queue_hide_srcu(). */
void rnull_loop_queue_show_srcu(struct request_queue *q)
{
	srcu_lock_acquire(&q->tag_set->srcu->dep_map);
}

/*
 * Returns whether @q has requests, or may have some. If it returns false, all
 * that the caller did before is visible to ->queue_rq() of later requests, and
 * all that was done to earlier requests is visible to the caller.
 */
bool rnull_loop_queue_has_requests(struct request_queue *q)
{
	struct blk_mq_hw_ctx *hctx;
	unsigned long i;

	/* Pairs with __srcu_read_lock() before ->queue_rq(), after the tag. */
	smp_mb();
	/* Requests that a scheduler holds have no driver tag. */
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
 * Returns the first block device of @disk from number *@partno on, with a
 * reference, and sets *@partno to its number; NULL if there is none. Number 0 is
 * the disk itself. Skips block devices that are being released.
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
 * Returns whether there are references to @disk other than the caller's. The
 * inode of @disk is not hashed, or not any more. But blkdev_get_no_open() may
 * have found it before, and be about to take a reference to the disk, so look at
 * the inode first. If it has found a partition instead, that partition holds a
 * reference to the disk for as long as there are references to the partition.
 */
bool rnull_loop_disk_is_shared(struct gendisk *disk)
{
	if (atomic_read(&disk->part0->bd_mapping->host->i_count) > 1)
		return true;
	/* Pairs with the full barrier of iput(). */
	smp_rmb();
	return kref_read(&disk_to_dev(disk)->kobj.kref) > 1;
}

/* Logs that the size of @disk was @old sectors: the line of set_capacity_and_notify(). */
void rnull_loop_log_capacity(struct gendisk *disk, u64 old)
{
	pr_info_ratelimited("%s: %s: detected capacity change from %llu to %llu\n",
			    KBUILD_MODNAME, disk->disk_name, old,
			    (u64)get_capacity(disk));
}

/* Returns whether @disk has partitions. The caller holds open_mutex. */
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

bool rnull_loop_bdev_can_atomic_write(struct block_device *bdev)
{
	return bdev_can_atomic_write(bdev);
}

unsigned int rnull_loop_bdev_atomic_unit_min(struct block_device *bdev)
{
	return queue_atomic_write_unit_min_bytes(bdev_get_queue(bdev));
}

unsigned int rnull_loop_bdev_atomic_unit_max(struct block_device *bdev)
{
	return queue_atomic_write_unit_max_bytes(bdev_get_queue(bdev));
}

unsigned int rnull_loop_bdev_atomic_boundary(struct block_device *bdev)
{
	return queue_atomic_write_boundary_bytes(bdev_get_queue(bdev));
}

/* Returns the position of @bdev on its disk, in bytes; 0 for a whole disk. */
u64 rnull_loop_bdev_start(struct block_device *bdev)
{
	return get_start_sect(bdev) << SECTOR_SHIFT;
}

/* Returns whether @bdev takes a non-blocking bio of @len bytes, without splitting it. */
bool rnull_loop_bdev_takes_nowait(struct block_device *bdev, unsigned int len)
{
	return bdev_nowait(bdev) &&
	       len >> SECTOR_SHIFT <= queue_max_sectors(bdev_get_queue(bdev));
}

/* Waits for the writeback of @mapping. Fails with -EINTR on a fatal signal. */
static int wait_writeback_killable(struct address_space *mapping)
{
	struct folio_batch batch;
	pgoff_t index = 0;
	unsigned int i;
	int err = 0;

	folio_batch_init(&batch);
	while (!err && filemap_get_folios_tag(mapping, &index, (pgoff_t)-1,
					      PAGECACHE_TAG_WRITEBACK, &batch)) {
		for (i = 0; i < folio_batch_count(&batch) && !err; i++)
			err = folio_wait_writeback_killable(batch.folios[i]);
		folio_batch_release(&batch);
		cond_resched();
	}
	return err;
}

/*
 * As sync_blockdev(), but fails with -EINTR on a fatal signal, and returns no
 * error of the writeback, which stays for fsync() of those that wrote.
 */
int rnull_loop_bdev_sync_killable(struct block_device *bdev)
{
	struct address_space *mapping = bdev->bd_mapping;
	int err;

	/* Skips folios that are under writeback, so it does not wait for them. */
	filemap_flush(mapping);
	err = wait_writeback_killable(mapping);
	if (err)
		return err;
	/* Writes those that were skipped. */
	filemap_fdatawrite(mapping);
	return wait_writeback_killable(mapping);
}

/*
 * Returns whether blkdev_read_iter() or blkdev_write_iter() would carry out
 * direct I/O of @len bytes at @pos. The answer may be stale when this returns: a
 * new dm table may change the size and the logical block size at any time.
 */
bool rnull_loop_bdev_can_access(struct block_device *bdev, bool write, u64 pos,
				unsigned int len)
{
	if (pos + len > bdev_nr_bytes(bdev) ||
	    ((pos | len) & (bdev_logical_block_size(bdev) - 1)))
		return false;
	return !write || (!bdev_read_only(bdev) &&
			  !IS_SWAPFILE(bdev->bd_mapping->host));
}

/*
 * As kiocb_start_write(), which takes freeze protection for files of all types: a
 * write to a block device changes the time stamps of its device node. Another
 * task may end the write, so lockdep must not expect this one to do so.
 */
void rnull_loop_file_start_write(struct file *file)
{
	struct super_block *sb = file_inode(file)->i_sb;

	sb_start_write(sb);
	__sb_writers_release(sb, SB_FREEZE_WRITE);
}

/* As rnull_loop_file_start_write(), but returns false if it would block. */
bool rnull_loop_file_start_write_trylock(struct file *file)
{
	struct super_block *sb = file_inode(file)->i_sb;

	if (!sb_start_write_trylock(sb))
		return false;
	__sb_writers_release(sb, SB_FREEZE_WRITE);
	return true;
}

/* As kiocb_end_write(). */
void rnull_loop_file_end_write(struct file *file)
{
	struct super_block *sb = file_inode(file)->i_sb;

	__sb_writers_acquired(sb, SB_FREEZE_WRITE);
	sb_end_write(sb);
}

/*
 * Returns whether @file is write-protected, although it may be open for writing:
 * since it was opened, the inode has become immutable, append-only or swap space,
 * the memfd was sealed, or the block device or the file system became read-only.
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

/* As kiocb_set_rw_flags() checks for RWF_DONTCACHE. */
bool rnull_loop_file_has_dontcache(struct file *file)
{
	return file->f_op->fop_flags & FOP_DONTCACHE && !IS_DAX(file->f_mapping->host);
}

/*
 * Returns whether a read that finds its data in the page cache of @file needs
 * nothing of the file system. Others than these may ask a server whether the data
 * is still valid, keep data outside the page cache, or stack on another file; tmpfs
 * keeps pages of broken memory. The access time of a block device is that of its
 * node.
 */
bool rnull_loop_file_has_local_cache(struct file *file)
{
	static const char *const types[] = { "ext4", "xfs",	 "btrfs",
					     "f2fs", "squashfs", "erofs" };
	struct inode *inode = file_inode(file);
	const char *type = inode->i_sb->s_type->name;

	if (S_ISBLK(inode->i_mode))
		return !strcmp(type, "devtmpfs");
	return S_ISREG(inode->i_mode) && inode == file->f_mapping->host &&
	       (file->f_flags & O_NOATIME) && !IS_DAX(inode) &&
	       match_string(types, ARRAY_SIZE(types), type) >= 0;
}

const struct path *rnull_loop_file_path(struct file *file)
{
	return &file->f_path;
}

/*
 * Returns the block device of the file system of @file, with a reference, or
 * NULL. btrfs may replace and close that device at any time.
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
 * Returns whether memory must not change while it is written to @file, because a
 * checksum or a parity is computed from it. For a block device, do not look at its
 * mapping, which is up to date as of bdev_add() only.
 */
bool rnull_loop_file_stable_writes(struct file *file)
{
	struct inode *inode = file->f_mapping->host;

	if (S_ISBLK(inode->i_mode))
		return bdev_stable_writes(I_BDEV(inode));
	return mapping_stable_writes(file->f_mapping);
}

/*
 * Returns whether IOCB_DSYNC is certain to make a write to @file durable.
 *
 * If the disk has FUA, a direct write to allocated blocks is not followed by a
 * sync, unless the file system reports that the metadata of these blocks is not
 * durable yet (IOMAP_F_DIRTY). XFS always reports that. btrfs never does. f2fs
 * and ext4 without a journal stop reporting it after the first write, and ext4
 * with fast commits sometimes misses it, which cannot be detected here. ocfs2
 * looks at O_DSYNC of the file instead of IOCB_DSYNC. A FUSE server may ignore
 * either.
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

#ifdef CONFIG_FILE_LOCKING
/*
 * Called with flc_lock held. Returns true to release the lease at once. Otherwise the
 * breaker waits until the owner releases it, which it does soon; the kernel never
 * takes the lease itself.
 */
static bool lease_break(struct file_lease *lease)
{
	struct rnull_loop_lease_owner *owner = lease->c.flc_owner;

	lease->fl_break_time = 0;
	return owner->broken(owner);
}

/*
 * Workers of this module write to the file without breaking its leases. No other
 * worker of a workqueue does: it would have opened the file for writing before.
 */
static bool lease_breaker_owns(struct file_lease *lease)
{
	return (current->flags & (PF_WQ_WORKER | PF_LOCAL_THROTTLE)) ==
	       (PF_WQ_WORKER | PF_LOCAL_THROTTLE);
}

/* The owner looks for writers itself, when it has the lease. */
static int lease_open_conflict(struct file *file, int arg)
{
	return 0;
}

static const struct lease_manager_operations lease_ops = {
	.lm_break = lease_break,
	.lm_breaker_owns_lease = lease_breaker_owns,
	.lm_open_conflict = lease_open_conflict,
	.lm_change = lease_modify,
};

/* Takes a delegation of @file, or a lease of its layout. */
int rnull_loop_lease_take(struct file *file, bool layout,
			  struct rnull_loop_lease_owner *owner)
{
	struct file_lease *lease = locks_alloc_lease();
	int ret;

	if (!lease)
		return -ENOMEM;
	lease->fl_lmops = &lease_ops;
	lease->c.flc_flags = layout ? FL_LAYOUT : FL_DELEG;
	lease->c.flc_type = F_RDLCK;
	lease->c.flc_owner = owner;
	lease->c.flc_pid = current->tgid;
	lease->c.flc_file = file;
	ret = kernel_setlease(file, F_RDLCK, &lease, NULL);
	if (lease)
		locks_free_lease(lease);
	return ret;
}
#else
int rnull_loop_lease_take(struct file *file, bool layout,
			  struct rnull_loop_lease_owner *owner)
{
	return -EOPNOTSUPP;
}
#endif

/* Releases the lease of @owner, if there is one; it is not called any more then. */
void rnull_loop_lease_release(struct file *file,
			      struct rnull_loop_lease_owner *owner)
{
	void *priv = owner;

	kernel_setlease(file, F_UNLCK, NULL, &priv);
}

/*
 * Returns the error with which the file system of @file refuses all writes now. XFS
 * returns none for a write of no bytes.
 */
int rnull_loop_file_check_write(struct file *file)
{
	struct kiocb kiocb;
	struct iov_iter iter;

	init_sync_kiocb(&kiocb, file);
	kiocb.ki_flags |= IOCB_DIRECT;
	iov_iter_kvec(&iter, ITER_SOURCE, NULL, 0, 0);
	return file->f_op->write_iter(&kiocb, &iter);
}

/*
 * From here on, tasks that are about to free or move blocks of @file wait: see
 * inode_dio_wait(). A task that finds a lease gone after this was called finds this, too.
 */
void rnull_loop_file_dio_begin(struct file *file)
{
	inode_dio_begin(file_inode(file));
	smp_mb__after_atomic();
}

/* Ends that. */
void rnull_loop_file_dio_end(struct file *file)
{
	inode_dio_end(file_inode(file));
}

/*
 * Opens @file again, for the same access and by the same credentials. Reads of the
 * new struct file do not change the access time.
 */
struct file *rnull_loop_file_reopen(struct file *file)
{
	return dentry_open(&file->f_path,
			   (file->f_flags & (O_ACCMODE | O_DIRECT | O_SYNC)) |
				   O_NOATIME | O_LARGEFILE,
			   file->f_cred);
}

/*
 * Returns whether the inode of @file has more openers for writing than @own ones.
 * An opener counts itself before it looks for leases, so one that is not counted
 * yet will find a lease that the caller has.
 */
bool rnull_loop_file_has_writers(struct file *file, int own)
{
	/* Pairs with the one in break_lease(). */
	smp_mb();
	return atomic_read(&file_inode(file)->i_writecount) > own;
}

/*
 * Returns whether @file is on a file system that keeps written blocks where they
 * are, until a lease of the file is broken: see kern/lease.rs. Data that the file
 * system transforms, or journals, or copies because it must not change while it is
 * written, or that must be durable when a write returns, has to go through the
 * file.
 */
bool rnull_loop_file_keeps_blocks(struct file *file)
{
	struct inode *inode = file_inode(file);
	const char *type = inode->i_sb->s_type->name;

	/* Online repair breaks leases only in kernels that export blocks. */
	if (strcmp(type, "ext4") &&
	    (strcmp(type, "xfs") || (IS_ENABLED(CONFIG_XFS_ONLINE_REPAIR) &&
				     !IS_ENABLED(CONFIG_EXPORTFS_BLOCK_OPS))))
		return false;
	return S_ISREG(inode->i_mode) && inode == file->f_mapping->host &&
	       inode->i_sb->s_bdev && inode->i_mapping->a_ops->bmap &&
	       !IS_DAX(inode) && !IS_ENCRYPTED(inode) && !IS_VERITY(inode) &&
	       !mapping_stable_writes(inode->i_mapping) && !IS_SYNC(inode) && !(file->f_flags & (O_DSYNC | __O_SYNC));
}

/*
 * Returns whether the file system of @file has not become read-only, nor @file
 * immutable or such that its writes must be durable when they return.
 */
bool rnull_loop_file_is_changeable(struct file *file)
{
	struct inode *inode = file_inode(file);

	return !sb_rdonly(inode->i_sb) && !IS_SYNC(inode) &&
	       !(READ_ONCE(inode->i_flags) &
		 (S_IMMUTABLE | S_SWAPFILE | S_VERITY | S_ENCRYPTED | S_DAX));
}

/*
 * Returns whether others have references to @file. If none has, and the caller
 * gives none away, none ever will.
 */
bool rnull_loop_file_is_shared(struct file *file)
{
	return file_count(file) != 1;
}

struct block_device *rnull_loop_file_bdev(struct file *file)
{
	return file_inode(file)->i_sb->s_bdev;
}

/* Returns the binary logarithm of the block size of the inode of @file. */
unsigned int rnull_loop_file_block_bits(struct file *file)
{
	return file_inode(file)->i_blkbits;
}

/*
 * Returns the blkcg of the first bio of @rq; NULL if that is the root, or if there
 * is none. The bio keeps the blkcg alive.
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

/* Returns the memcg that belongs to @blkcg_css, with a reference, or NULL. */
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

/* mutex_lock_killable() is a macro with CONFIG_DEBUG_LOCK_ALLOC. */
int rnull_loop_mutex_lock_killable(struct mutex *lock)
{
	return mutex_lock_killable(lock);
}

/*
 * Waits until *@count is @value. The task that sets that value calls
 * rnull_loop_wake_up_count() afterwards. All that it did before is visible to the
 * caller.
 */
void rnull_loop_wait_for_count(atomic_t *count, int value)
{
	wait_var_event(count, atomic_read_acquire(count) == value);
}

/* Wakes up rnull_loop_wait_for_count(). Called after a change of *@count and a full barrier. */
void rnull_loop_wake_up_count(atomic_t *count)
{
	wake_up_var(count);
}

bool rnull_loop_in_task(void)
{
	return in_task();
}

bool rnull_loop_is_killed(void)
{
	return fatal_signal_pending(current);
}

bool rnull_loop_need_resched(void)
{
	return need_resched();
}

void rnull_loop_cond_resched(void)
{
	cond_resched_tasks_rcu_qs();
}

void rnull_loop_plug_invalidate_ts(void)
{
	blk_plug_invalidate_ts();
}

unsigned int rnull_loop_num_online_cpus(void)
{
	return num_online_cpus();
}

/* How long the online CPUs have been idle, the sum of all. */
u64 rnull_loop_idle_time_ns(void)
{
	u64 us = 0;
	int cpu;

	for_each_online_cpu(cpu)
		us += get_cpu_idle_time_us(cpu, NULL) +
		      get_cpu_iowait_time_us(cpu, NULL);
	return us * NSEC_PER_USEC;
}

/* Returns whether the current CPU is isolated by isolcpus= or by a cpuset. */
bool rnull_loop_on_isolated_cpu(void)
{
	bool isolated;

	rcu_read_lock();
	isolated = !housekeeping_cpu(raw_smp_processor_id(), HK_TYPE_DOMAIN);
	rcu_read_unlock();
	return isolated;
}

/* Returns the current CPU, or a nearby one if the current CPU is isolated. */
int rnull_loop_housekeeping_cpu(void)
{
	int cpu = get_cpu();

	if (!housekeeping_cpu(cpu, HK_TYPE_DOMAIN))
		cpu = housekeeping_any_cpu(HK_TYPE_DOMAIN);
	put_cpu();
	return cpu;
}
