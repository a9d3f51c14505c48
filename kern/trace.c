// SPDX-License-Identifier: GPL-2.0

/* The kernel has created these. */
#include <trace/events/block.h>

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include "trace.h"

#include "helpers.h"

/* Notes that @bio, which is about to be submitted, carries out the rest of @rq. */
void rnull_loop_trace_bio_remap(struct bio *bio, struct request *rq)
{
	trace_block_bio_remap(bio, disk_devt(rq->q->disk), blk_rq_pos(rq));
}
