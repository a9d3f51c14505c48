// SPDX-License-Identifier: GPL-2.0
/*
 * replay_log LOG cuts NUMBER SEED
 * replay_log LOG replay DEVICE FROM TO [SEED]
 *
 * Reads the log of dm-log-writes, whose entries are in the order in which they became durable: a
 * plain write or discard when the next flush completed, before the entry of that flush; a durable
 * write (FUA) when it completed; a mark when it was set.
 *
 * cuts: picks moments of a power cut between the mark "0" and the last mark that is a number, half
 * of them just after a mark. Prints for each, sorted, "SAFE CUT MARK": the cut is before entry CUT;
 * entries before SAFE were durable for certain, because they are before the last flush; MARK is the
 * last mark.
 *
 * replay: repeats on DEVICE the entries from FROM to TO, without the last. A SEED other than 0
 * leaves out half of the entries that the cache of a disk might have lost: all but durable writes.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "random.h"

/* drivers/md/dm-log-writes.c; all is little-endian. */
enum { FLUSH = 1, FUA = 2, DISCARD = 4, MARK = 8 };
#define MAGIC 0x6a736677736872ULL
#define VERSION 1

struct super {
	uint64_t magic, version, entries;
	uint32_t sector_size;
};

struct entry {
	uint64_t sector, sectors, flags, data_len;
};

#define CHUNK (1 << 20)
static int log_fd;
static uint64_t sector_size;
static char *head, *chunk;

static uint64_t random_state;

static void read_log(void *to, uint64_t size, uint64_t at)
{
	if (pread(log_fd, to, size, at) != (ssize_t)size)
		err(1, "the log at byte %" PRIu64, at);
}

/* Bypasses page caches, because those of the devices may be stale. */
static uint64_t open_log(const char *path)
{
	const struct super *super;

	log_fd = open(path, O_RDONLY | O_DIRECT);
	if (log_fd < 0)
		err(1, "%s", path);
	if (posix_memalign((void **)&head, 4096, 4096) || posix_memalign((void **)&chunk, 4096, CHUNK))
		errx(1, "no memory");
	read_log(head, 4096, 0);
	super = (const void *)head;
	if (super->magic != MAGIC || super->version != VERSION)
		errx(1, "%s is no log of dm-log-writes", path);
	sector_size = super->sector_size;
	if (sector_size < 512 || sector_size > 4096 || sector_size & (sector_size - 1))
		errx(1, "%s has sectors of %" PRIu64 " bytes", path, sector_size);
	return super->entries;
}

/* Returns the entry at *at, with its first sector in `head`, and moves *at to its data. */
static struct entry next_entry(uint64_t *at)
{
	struct entry entry;

	read_log(head, sector_size, *at);
	memcpy(&entry, head, sizeof(entry));
	*at += sector_size;
	if (entry.flags & MARK && entry.data_len >= sector_size - sizeof(entry))
		errx(1, "a mark of %" PRIu64 " bytes", entry.data_len);
	return entry;
}

static uint64_t data_size(const struct entry *entry)
{
	return entry->flags & DISCARD ? 0 : entry->sectors * sector_size;
}

static void apply(int device, const struct entry *entry, uint64_t from)
{
	uint64_t range[2] = { entry->sector * sector_size, entry->sectors * sector_size };
	uint64_t done, size;

	if (entry->flags & DISCARD) {
		if (ioctl(device, BLKDISCARD, range))
			err(1, "discard of %" PRIu64 " bytes at %" PRIu64, range[1], range[0]);
		return;
	}
	for (done = 0; done < range[1]; done += size) {
		size = range[1] - done < CHUNK ? range[1] - done : CHUNK;
		read_log(chunk, size, from + done);
		if (pwrite(device, chunk, size, range[0] + done) != (ssize_t)size)
			err(1, "write of %" PRIu64 " bytes at %" PRIu64, size, range[0] + done);
	}
}

static void replay(const char *path, uint64_t from, uint64_t to)
{
	int device = open(path, O_RDWR | O_DIRECT), lossy = random_state != 0;
	uint64_t at = sector_size, i;

	if (device < 0)
		err(1, "%s", path);
	for (i = 0; i < to; i++) {
		struct entry entry = next_entry(&at);

		if (i >= from && !(lossy && !(entry.flags & FUA) && random_number(&random_state) & 1))
			apply(device, &entry, at);
		at += data_size(&entry);
	}
	if (fsync(device))
		err(1, "%s", path);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Picks the cuts. Only marks that are numbers count; text[i] is the number of entry marks[i]. */
static void pick(uint64_t entries, uint64_t wanted)
{
	uint64_t *marks = calloc(entries + 1, 8), *text = calloc(entries + 1, 8), *safe = calloc(entries + 1, 8);
	uint64_t *cuts = calloc(wanted + 1, 8), at = sector_size, flushed = 0, i, m, number_of_marks = 0;

	if (!marks || !text || !safe || !cuts)
		errx(1, "no memory");
	for (i = 0; i < entries; i++) {
		struct entry entry = next_entry(&at);
		char *end, *data = head + sizeof(entry);

		if (entry.flags & MARK) {
			data[entry.data_len] = 0;
			text[number_of_marks] = strtoull(data, &end, 10);
			if (entry.data_len && !*end)
				marks[number_of_marks++] = i;
		}
		if (entry.flags & FLUSH)
			flushed = i;
		safe[i + 1] = flushed;
		at += data_size(&entry);
	}
	if (number_of_marks < 2)
		errx(1, "the log has %" PRIu64 " marks in %" PRIu64 " entries", number_of_marks, entries);
	for (i = 0; i < wanted; i++)
		if (random_number(&random_state) & 1)
			cuts[i] = marks[random_number(&random_state) % number_of_marks] + 1;
		else
			cuts[i] = marks[0] + 1 + random_number(&random_state) % (marks[number_of_marks - 1] - marks[0] + 1);
	qsort(cuts, wanted, 8, compare);
	for (i = m = 0; i < wanted; i++) {
		while (m + 1 < number_of_marks && marks[m + 1] < cuts[i])
			m++;
		printf("%" PRIu64 " %" PRIu64 " %" PRIu64 "\n", safe[cuts[i]], cuts[i], text[m]);
	}
}

int main(int argc, char **argv)
{
	uint64_t entries;

	if (argc == 5 && !strcmp(argv[2], "cuts")) {
		entries = open_log(argv[1]);
		random_state = number(argv[4]);
		pick(entries, number(argv[3]));
	} else if ((argc == 6 || argc == 7) && !strcmp(argv[2], "replay")) {
		entries = open_log(argv[1]);
		random_state = argc == 7 ? number(argv[6]) : 0;
		if (number(argv[5]) > entries)
			errx(1, "there are %" PRIu64 " entries", entries);
		replay(argv[3], number(argv[4]), number(argv[5]));
	} else {
		errx(2, "usage: replay_log LOG cuts NUMBER SEED | replay_log LOG replay DEVICE FROM TO [SEED]");
	}
	return 0;
}
