/* SPDX-License-Identifier: GPL-2.0 */
#ifndef RNULL_LOOP_HELPERS_H
#define RNULL_LOOP_HELPERS_H

#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/fs.h>

/* blk-mq and request data */
unsigned int rnull_loop_rq_nr_bvec(struct request *rq);
unsigned int rnull_loop_bio_nr_bvec(struct bio *bio);
unsigned int rnull_loop_rq_copy_bvecs(struct request *rq, struct bio_vec *to,
				      unsigned int max);
void rnull_loop_rq_zero_fill(struct request *rq);
void rnull_loop_complete_request(struct request *rq);
void rnull_loop_flush_completions(void);
bool rnull_loop_should_fake_timeout(struct request_queue *q);

void rnull_loop_trace_bio_remap(struct bio *bio, struct request *rq);

/* queue limits and freezing */
struct queue_limits rnull_loop_limits_start_update(struct request_queue *q);
void rnull_loop_limits_cancel_update(struct request_queue *q);
void rnull_loop_inherit_stable_writes(struct gendisk *disk);
unsigned int rnull_loop_freeze_queue(struct request_queue *q);
void rnull_loop_queue_get(struct request_queue *q);
void rnull_loop_queue_put(struct request_queue *q);
void rnull_loop_queue_hide_srcu(struct request_queue *q);
void rnull_loop_queue_show_srcu(struct request_queue *q);
bool rnull_loop_queue_has_requests(struct request_queue *q);
void rnull_loop_unfreeze_queue(struct request_queue *q, unsigned int memflags);
void rnull_loop_disable_discard(struct request_queue *q);
void rnull_loop_disable_write_zeroes(struct request_queue *q);

/* disks and block devices */
unsigned int rnull_loop_disk_openers(struct gendisk *disk);
struct block_device *rnull_loop_get_part(struct gendisk *disk,
					 unsigned long *partno);
bool rnull_loop_disk_is_shared(struct gendisk *disk);
bool rnull_loop_disk_has_partitions(struct gendisk *disk);
void rnull_loop_log_capacity(struct gendisk *disk, u64 old);
struct device *rnull_loop_disk_to_dev(struct gendisk *disk);
struct gendisk *rnull_loop_dev_to_disk(struct device *dev);
void rnull_loop_set_uevent_suppress(struct gendisk *disk, bool on);
unsigned int rnull_loop_bdev_write_zeroes_sectors(struct block_device *bdev);
unsigned int rnull_loop_bdev_discard_granularity(struct block_device *bdev);
bool rnull_loop_bdev_rot(struct block_device *bdev);
unsigned int rnull_loop_bdev_logical_block_size(struct block_device *bdev);
unsigned int rnull_loop_bdev_dma_alignment(struct block_device *bdev);
bool rnull_loop_bdev_can_atomic_write(struct block_device *bdev);
unsigned int rnull_loop_bdev_atomic_unit_min(struct block_device *bdev);
unsigned int rnull_loop_bdev_atomic_unit_max(struct block_device *bdev);
unsigned int rnull_loop_bdev_atomic_boundary(struct block_device *bdev);
u64 rnull_loop_bdev_start(struct block_device *bdev);
bool rnull_loop_bdev_takes_nowait(struct block_device *bdev, unsigned int len);
int rnull_loop_bdev_sync_killable(struct block_device *bdev);
bool rnull_loop_bdev_can_access(struct block_device *bdev, bool write, u64 pos,
				unsigned int len);

/* files */
void rnull_loop_file_start_write(struct file *file);
bool rnull_loop_file_start_write_trylock(struct file *file);
void rnull_loop_file_end_write(struct file *file);
bool rnull_loop_file_refuses_writes(struct file *file);
loff_t rnull_loop_i_size_read(struct file *file);
bool rnull_loop_file_has_local_cache(struct file *file);
bool rnull_loop_file_has_dontcache(struct file *file);
const struct path *rnull_loop_file_path(struct file *file);
struct block_device *rnull_loop_get_sb_bdev(struct file *file);
bool rnull_loop_file_honours_dsync(struct file *file);
bool rnull_loop_file_stable_writes(struct file *file);
int rnull_loop_fs_block_size(struct file *file, unsigned int *size);

/* leases and the blocks of files */
struct rnull_loop_lease_owner {
	bool (*broken)(struct rnull_loop_lease_owner *owner);
};
int rnull_loop_lease_take(struct file *file, bool layout,
			  struct rnull_loop_lease_owner *owner);
void rnull_loop_lease_release(struct file *file,
			      struct rnull_loop_lease_owner *owner);
int rnull_loop_file_check_write(struct file *file);
void rnull_loop_file_dio_begin(struct file *file);
void rnull_loop_file_dio_end(struct file *file);
struct file *rnull_loop_file_reopen(struct file *file);
bool rnull_loop_file_has_writers(struct file *file, int own);
bool rnull_loop_file_keeps_blocks(struct file *file);
bool rnull_loop_file_is_changeable(struct file *file);
bool rnull_loop_file_is_shared(struct file *file);
unsigned int rnull_loop_file_block_bits(struct file *file);
struct block_device *rnull_loop_file_bdev(struct file *file);

/* cgroups */
struct cgroup_subsys_state;
struct mem_cgroup;
struct cgroup_subsys_state *rnull_loop_rq_blkcg_css(struct request *rq);
struct cgroup_subsys_state *
rnull_loop_memcg_css(struct cgroup_subsys_state *blkcg_css);
void rnull_loop_bio_clone_blkg_association(struct bio *dst, struct bio *src);
void rnull_loop_kthread_associate_blkcg(struct cgroup_subsys_state *css);
void rnull_loop_css_put(struct cgroup_subsys_state *css);
struct mem_cgroup *
rnull_loop_set_active_memcg(struct cgroup_subsys_state *css);
void rnull_loop_restore_active_memcg(struct mem_cgroup *old);

/* tasks, CPUs and locks */
void rnull_loop_wait_for_count(atomic_t *count, int value);
void rnull_loop_wake_up_count(atomic_t *count);
int rnull_loop_mutex_lock_killable(struct mutex *lock);
bool rnull_loop_in_task(void);
bool rnull_loop_need_resched(void);
bool rnull_loop_is_killed(void);
void rnull_loop_cond_resched(void);
void rnull_loop_plug_invalidate_ts(void);
unsigned int rnull_loop_num_online_cpus(void);
u64 rnull_loop_idle_time_ns(void);
bool rnull_loop_on_isolated_cpu(void);
int rnull_loop_housekeeping_cpu(void);

#endif
