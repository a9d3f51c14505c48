/* SPDX-License-Identifier: GPL-2.0 */

/* The tracepoints of the driver. dist/rnull_loop.4 explains them to their users. */

#undef TRACE_SYSTEM
#define TRACE_SYSTEM rnull_loop

#if !defined(RNULL_LOOP_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define RNULL_LOOP_TRACE_H

#include <linux/blk-mq.h>
#include <linux/blktrace_api.h>
#include <linux/fs.h>
#include <linux/tracepoint.h>

/* A request, and a word about it: @len bytes at @word. */
DECLARE_EVENT_CLASS(rnull_loop_request,
	TP_PROTO(struct request *rq, const char *word, size_t len),
	TP_ARGS(rq, word, len),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(sector_t, sector)
		__field(unsigned int, bytes)
		__array(char, rwbs, RWBS_LEN)
		__string_len(word, word, len)
	),
	TP_fast_assign(
		__entry->dev = disk_devt(rq->q->disk);
		__entry->sector = blk_rq_trace_sector(rq);
		__entry->bytes = blk_rq_bytes(rq);
		blk_fill_rwbs(__entry->rwbs, rq->cmd_flags);
		__assign_str(word);
	),
	TP_printk("%d,%d %s %llu %u %s", MAJOR(__entry->dev), MINOR(__entry->dev), __entry->rwbs,
		  (unsigned long long)__entry->sector, __entry->bytes, __get_str(word))
);

/* @word is the route, by the name of its counter in the statistics. */
DEFINE_EVENT(rnull_loop_request, request_routed,
	TP_PROTO(struct request *rq, const char *word, size_t len),
	TP_ARGS(rq, word, len)
);

/* @word is the reason, by the name of its counter in the statistics. */
DEFINE_EVENT(rnull_loop_request, request_requeued,
	TP_PROTO(struct request *rq, const char *word, size_t len),
	TP_ARGS(rq, word, len)
);

/* The first @bytes bytes of a request are submitted, to @position (in bytes). */
TRACE_EVENT(request_submitted,
	TP_PROTO(struct request *rq, const char *word, size_t len, u64 position, u32 bytes),
	TP_ARGS(rq, word, len, position, bytes),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(sector_t, sector)
		__field(u32, bytes)
		__field(u64, position)
		__array(char, rwbs, RWBS_LEN)
		__string_len(word, word, len)
	),
	TP_fast_assign(
		__entry->dev = disk_devt(rq->q->disk);
		__entry->sector = blk_rq_trace_sector(rq);
		__entry->bytes = bytes;
		__entry->position = position;
		blk_fill_rwbs(__entry->rwbs, rq->cmd_flags);
		__assign_str(word);
	),
	TP_printk("%d,%d %s %llu %u %s position=%llu", MAJOR(__entry->dev), MINOR(__entry->dev),
		  __entry->rwbs, (unsigned long long)__entry->sector, __entry->bytes,
		  __get_str(word), __entry->position)
);

/* A request ends; @status is that of what was left of it. */
TRACE_EVENT(request_completed,
	TP_PROTO(struct request *rq, blk_status_t status),
	TP_ARGS(rq, status),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(sector_t, sector)
		__field(unsigned int, bytes)
		__field(int, error)
		__array(char, rwbs, RWBS_LEN)
	),
	TP_fast_assign(
		__entry->dev = disk_devt(rq->q->disk);
		__entry->sector = blk_rq_trace_sector(rq);
		__entry->bytes = blk_rq_bytes(rq);
		__entry->error = blk_status_to_errno(status);
		blk_fill_rwbs(__entry->rwbs, rq->cmd_flags);
	),
	TP_printk("%d,%d %s %llu %u [%d]", MAJOR(__entry->dev), MINOR(__entry->dev), __entry->rwbs,
		  (unsigned long long)__entry->sector, __entry->bytes, __entry->error)
);

/* A device is bound to a file, or to another one: @offset and @sizelimit are in bytes. */
TRACE_EVENT(device_attached,
	TP_PROTO(struct gendisk *disk, struct file *file, u64 offset, u64 sizelimit, u32 flags),
	TP_ARGS(disk, file, offset, sizelimit, flags),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(dev_t, file_dev)
		__field(u64, ino)
		__field(u64, offset)
		__field(u64, sizelimit)
		__field(u32, flags)
	),
	TP_fast_assign(
		__entry->dev = disk_devt(disk);
		__entry->file_dev = file_inode(file)->i_sb->s_dev;
		__entry->ino = file_inode(file)->i_ino;
		__entry->offset = offset;
		__entry->sizelimit = sizelimit;
		__entry->flags = flags;
	),
	TP_printk("%d,%d file=%d,%d:%llu offset=%llu sizelimit=%llu flags=0x%x",
		  MAJOR(__entry->dev), MINOR(__entry->dev), MAJOR(__entry->file_dev),
		  MINOR(__entry->file_dev), __entry->ino, __entry->offset, __entry->sizelimit,
		  __entry->flags)
);

/* A device is not bound to a file any more. */
TRACE_EVENT(device_detached,
	TP_PROTO(struct gendisk *disk),
	TP_ARGS(disk),
	TP_STRUCT__entry(
		__field(dev_t, dev)
	),
	TP_fast_assign(
		__entry->dev = disk_devt(disk);
	),
	TP_printk("%d,%d", MAJOR(__entry->dev), MINOR(__entry->dev))
);

DECLARE_EVENT_CLASS(rnull_loop_lease,
	TP_PROTO(struct file *file, bool layout),
	TP_ARGS(file, layout),
	TP_STRUCT__entry(
		__field(dev_t, file_dev)
		__field(u64, ino)
		__field(bool, layout)
	),
	TP_fast_assign(
		__entry->file_dev = file_inode(file)->i_sb->s_dev;
		__entry->ino = file_inode(file)->i_ino;
		__entry->layout = layout;
	),
	TP_printk("file=%d,%d:%llu %s", MAJOR(__entry->file_dev), MINOR(__entry->file_dev),
		  __entry->ino, __entry->layout ? "layout" : "delegation")
);

DEFINE_EVENT(rnull_loop_lease, lease_taken,
	TP_PROTO(struct file *file, bool layout),
	TP_ARGS(file, layout)
);

/* Called with a spinlock held. */
DEFINE_EVENT(rnull_loop_lease, lease_broken,
	TP_PROTO(struct file *file, bool layout),
	TP_ARGS(file, layout)
);

#endif

/* This part must be outside protection. */
#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
