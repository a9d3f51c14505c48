// SPDX-License-Identifier: GPL-2.0
/*
 * overlap SEED MILLISECONDS DEVICE
 *
 * Threads write and read the first 128 KiB of a block device with direct I/O, many requests at a
 * time, and most of these requests overlap. A write that was acknowledged before another write of
 * the same place was submitted must not overtake it: neither a later read nor the device at rest
 * may show it. Writes in flight at the same time may take effect in any order; cases in which a
 * thread's earlier write overtook its later one are counted.
 *
 * Every submission and every acknowledgement increments a counter, whose values give the order.
 * Each byte is checked by itself, because concurrent writes may be torn anywhere: an emulated CPU
 * copies memory byte by byte. Prints the counts.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "random.h"

#define SIZE (128 << 10)
#define WORDS (SIZE / 8)
#define MOST (32 << 10)
#define THREADS 3
#define DEPTH 12
/* The requests of a thread in a round. */
#define REQUESTS 64

struct request {
	struct iocb iocb;
	uint64_t *buffer;
	/* The values of the counter; 0 until the request is acknowledged. */
	unsigned long submitted, acknowledged;
};

struct thread {
	pthread_t id;
	uint64_t state;
	aio_context_t context;
	struct request requests[REQUESTS];
};

static struct thread threads[THREADS];
static uint64_t seed;
static int device;
static unsigned int block_size;
static atomic_ulong counter = 1;
/* The round, and the content of the device when it began. */
static uint32_t round_number;
static uint64_t before[WORDS], *at_rest;
static unsigned long writes, bytes_checked, blocks_with_two, blocks_overtaken;

static void *aligned(size_t size)
{
	void *memory;

	if (posix_memalign(&memory, 4096, size))
		errx(1, "no memory");
	return memory;
}

/* Returns the value that a request of this round writes to a word. */
static uint64_t stamp(const struct thread *t, unsigned int request, unsigned int word)
{
	uint64_t state = seed ^ (uint64_t)round_number << 40 ^ (uint64_t)(t - threads) << 32 ^ request << 16 ^ word;

	return random_number(&state);
}

/* --- requests */

static void plan(struct thread *t, unsigned int number)
{
	struct request *r = &t->requests[number];
	unsigned int blocks = SIZE / block_size, most = MOST / block_size, start, count, i;
	int is_write = random_number(&t->state) % 8 != 0;

	/* Half of them are short, so that they overlap some requests and not others. */
	count = 1 + random_number(&t->state) % (random_number(&t->state) % 2 ? most : 1 + most / 8);
	start = random_number(&t->state) % (blocks - count + 1);
	r->iocb = (struct iocb){
		.aio_data = number,
		.aio_lio_opcode = is_write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
		.aio_fildes = device,
		.aio_buf = (uintptr_t)r->buffer,
		.aio_nbytes = count * block_size,
		.aio_offset = start * block_size,
	};
	r->submitted = r->acknowledged = 0;
	for (i = 0; is_write && i < r->iocb.aio_nbytes / 8; i++)
		r->buffer[i] = stamp(t, number, r->iocb.aio_offset / 8 + i);
}

static void reap(struct thread *t, unsigned int least, unsigned int *in_flight)
{
	struct io_event events[DEPTH];
	long i, count = syscall(SYS_io_getevents, t->context, least, DEPTH, events, NULL);

	if (count < (long)least)
		err(1, "io_getevents");
	for (i = 0; i < count; i++) {
		struct request *r = &t->requests[events[i].data];

		if (events[i].res != (int64_t)r->iocb.aio_nbytes)
			errx(1, "seed %lu: a request of %llu bytes returned %lld", seed, r->iocb.aio_nbytes,
			     events[i].res);
		r->acknowledged = atomic_fetch_add(&counter, 1);
	}
	*in_flight -= count;
}

static void *run(void *argument)
{
	struct thread *t = argument;
	unsigned int number, in_flight = 0, batch, i;
	struct iocb *list[4];

	for (number = 0; number < REQUESTS; number += batch) {
		batch = 1 + random_number(&t->state) % 4;
		if (batch > REQUESTS - number)
			batch = REQUESTS - number;
		/* Sometimes few or none are in flight, so that their order matters. */
		if (in_flight)
			reap(t, in_flight + batch > DEPTH ? in_flight + batch - DEPTH :
			     random_number(&t->state) % 4 ? 0 : 1 + random_number(&t->state) % in_flight, &in_flight);
		for (i = 0; i < batch; i++) {
			struct request *r = &t->requests[number + i];

			list[i] = &r->iocb;
			r->submitted = atomic_fetch_add(&counter, 1);
		}
		if (syscall(SYS_io_submit, t->context, batch, list) != batch)
			err(1, "io_submit");
		in_flight += batch;
	}
	reap(t, in_flight, &in_flight);
	return NULL;
}

/* --- checking */

struct write {
	const struct request *request;
	const struct thread *thread;
	unsigned int number;
};

static int covers(const struct request *r, unsigned int word)
{
	return r->iocb.aio_lio_opcode == IOCB_CMD_PWRITE && word >= r->iocb.aio_offset / 8 &&
	       word < (r->iocb.aio_offset + r->iocb.aio_nbytes) / 8;
}

/* Finds all writes of this round to a block. */
static unsigned int writes_to(unsigned int word, struct write *found)
{
	unsigned int t, i, count = 0;

	for (t = 0; t < THREADS; t++)
		for (i = 0; i < REQUESTS; i++)
			if (covers(&threads[t].requests[i], word))
				found[count++] = (struct write){ &threads[t].requests[i], &threads[t], i };
	return count;
}

/*
 * Keeps the writes to a block that a read may show: those submitted before the read was
 * acknowledged, and acknowledged after the submission of each write that was acknowledged before
 * the read was submitted. Returns the last such submission, or 0: then the read may show the
 * content before the round.
 */
static unsigned long drop_superseded(struct write *writes, unsigned int *count, unsigned long submitted,
				     unsigned long acknowledged)
{
	unsigned long last = 0;
	unsigned int i, kept = 0;

	for (i = 0; i < *count; i++) {
		const struct request *r = writes[i].request;

		if (r->acknowledged < submitted && r->submitted > last)
			last = r->submitted;
	}
	for (i = 0; i < *count; i++)
		if (writes[i].request->acknowledged > last && writes[i].request->submitted < acknowledged)
			writes[kept++] = writes[i];
	*count = kept;
	return last;
}

/* Returns a mask of the bytes that are equal in two words. */
static unsigned int equal_bytes(uint64_t a, uint64_t b)
{
	unsigned int i, mask = 0;

	for (i = 0; i < 8; i++)
		mask |= (unsigned int)((a >> 8 * i & 255) == (b >> 8 * i & 255)) << i;
	return mask;
}

__attribute__((noreturn))
static void wrong(uint64_t value, unsigned int word, unsigned long last, unsigned long submitted, const char *how)
{
	struct write all[THREADS * REQUESTS];
	unsigned int i, count = writes_to(word, all);

	fprintf(stderr, "seed %lu, round %u: after a write was submitted at %lu and acknowledged, %s at %lu shows at byte %u",
		seed, round_number, last, how, submitted, word * 8);
	for (i = 0; i < count; i++)
		if (value == stamp(all[i].thread, all[i].number, word)) {
			fprintf(stderr, " a write acknowledged at %lu\n", all[i].request->acknowledged);
			exit(1);
		}
	fprintf(stderr, value == before[word] ? " the content before the round\n" : " bytes of no single write\n");
	exit(1);
}

/* Checks a block that a read has returned. */
static void check_block(const uint64_t *data, unsigned int first, unsigned long submitted,
			unsigned long acknowledged, const char *how)
{
	struct write writes[THREADS * REQUESTS];
	unsigned int count = writes_to(first, writes), word, i, right;
	unsigned long last = drop_superseded(writes, &count, submitted, acknowledged);

	for (word = first; word < first + block_size / 8; word++, data++) {
		right = last ? 0 : equal_bytes(*data, before[word]);
		for (i = 0; i < count && right != 255; i++)
			right |= equal_bytes(*data, stamp(writes[i].thread, writes[i].number, word));
		if (right != 255)
			wrong(*data, word, last, submitted, how);
	}
	bytes_checked += block_size;
}

static void check_read(const uint64_t *data, unsigned int offset, unsigned int size, unsigned long submitted,
		       unsigned long acknowledged, const char *how)
{
	unsigned int at;

	for (at = 0; at < size; at += block_size)
		check_block(data + at / 8, (offset + at) / 8, submitted, acknowledged, how);
}

/* Counts blocks that may be of two concurrent writes of a thread, and those of the earlier one. */
static void count_overtaken(unsigned int word)
{
	struct write writes[THREADS * REQUESTS];
	unsigned int count = writes_to(word, writes), i, j, several = 0, earlier = 0;

	drop_superseded(writes, &count, counter, -1UL);
	for (i = 0; i < count; i++)
		for (j = i + 1; j < count; j++)
			if (writes[i].thread == writes[j].thread) {
				several = 1;
				earlier |= at_rest[word] == stamp(writes[i].thread, writes[i].number, word);
			}
	blocks_with_two += several;
	blocks_overtaken += earlier;
}

static void check_round(void)
{
	unsigned int t, i, word;

	if (pread(device, at_rest, SIZE, 0) != SIZE)
		err(1, "read");
	check_read(at_rest, 0, SIZE, counter, -1UL, "the device at rest");
	for (t = 0; t < THREADS; t++)
		for (i = 0; i < REQUESTS; i++) {
			const struct request *r = &threads[t].requests[i];

			if (r->iocb.aio_lio_opcode == IOCB_CMD_PREAD)
				check_read(r->buffer, r->iocb.aio_offset, r->iocb.aio_nbytes, r->submitted,
					   r->acknowledged, "a read");
			else
				writes++;
		}
	for (word = 0; word < WORDS; word += block_size / 8)
		count_overtaken(word);
}

static void one_round(void)
{
	unsigned int t, i;

	round_number++;
	for (t = 0; t < THREADS; t++)
		for (i = 0; i < REQUESTS; i++)
			plan(&threads[t], i);
	for (t = 0; t < THREADS; t++)
		if (pthread_create(&threads[t].id, NULL, run, &threads[t]))
			errx(1, "no thread");
	for (t = 0; t < THREADS; t++)
		pthread_join(threads[t].id, NULL);
	check_round();
	memcpy(before, at_rest, SIZE);
}

static unsigned long milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000UL + now.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
	unsigned long end;
	unsigned int t, i;

	if (argc != 4)
		errx(2, "usage: overlap SEED MILLISECONDS DEVICE");
	seed = number(argv[1]);
	end = milliseconds() + number(argv[2]);
	device = open(argv[3], O_RDWR | O_DIRECT);
	if (device < 0 || ioctl(device, BLKSSZGET, &block_size))
		err(1, "%s", argv[3]);
	for (t = 0; t < THREADS; t++) {
		threads[t].state = seed * THREADS + t;
		if (syscall(SYS_io_setup, DEPTH, &threads[t].context))
			err(1, "io_setup");
		for (i = 0; i < REQUESTS; i++)
			threads[t].requests[i].buffer = aligned(MOST);
	}
	at_rest = aligned(SIZE);
	memset(at_rest, 0, SIZE);
	if (pwrite(device, at_rest, SIZE, 0) != SIZE)
		err(1, "write");
	do
		one_round();
	while (milliseconds() < end);
	printf("writes %lu\nbytes_checked %lu\nblocks_with_two_in_flight %lu\nblocks_overtaken %lu\n", writes,
	       bytes_checked, blocks_with_two, blocks_overtaken);
	return 0;
}
