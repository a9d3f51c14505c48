// SPDX-License-Identifier: GPL-2.0
/*
 * acknowledged write device|files PATH SEED FIRST LAST [MAPPING]
 * acknowledged check device|files PATH SEED LAST MOST
 *
 * Writes in steps from FIRST to LAST to a block device or into a directory. Reports the number of
 * each step that is acknowledged as durable: as a mark to dm-log-writes as MAPPING, otherwise on
 * standard output.
 *
 * The data of a step follows only from the seed and its number, so check needs no record: after
 * LAST was acknowledged, each place completely holds the data of the last step up to LAST that
 * wrote to it, or of a later one up to MOST; no older data, and no torn data. Prints the number of
 * bytes checked.
 *
 * A step on a device writes to up to eight places, concurrently with direct I/O: durable writes
 * (RWF_DSYNC, only FUA to the device), or plain ones followed by fdatasync(); or buffered ones
 * followed by fsync(); or it zeroes them, followed by fdatasync(); or it writes them without making
 * that durable, and a moment later their second halves with durable writes: only these are
 * acknowledged. A step in a directory replaces a file by a new one (synced, or opened with
 * O_DSYNC), and syncs the directory.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/aio_abi.h>
#include <linux/dm-ioctl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "random.h"

#define SECTOR 512
/* The used part of a device is 4 MiB. */
#define SECTORS 8192
#define PLACES 8
#define SLOT (SECTORS / PLACES)
#define MOST_SECTORS 64
#define FILES 16

enum mode { DURABLE, SYNCED, BUFFERED, ZEROED, REWRITTEN, MODES };

/* The operations of a step. A file has one place, from its beginning. */
struct plan {
	enum mode mode;
	unsigned int file, places;
	struct {
		unsigned int start, length;
	} place[PLACES];
};

static uint64_t seed;
static int files;
static char *buffer;

static struct plan plan(uint64_t step)
{
	uint64_t state = seed * 1000003 + step;
	struct plan plan = { .mode = random_number(&state) % MODES };
	unsigned int i, start, length;

	plan.file = random_number(&state) % FILES;
	plan.places = files ? 1 : 1 + random_number(&state) % PLACES;
	for (i = 0; i < plan.places; i++) {
		start = random_number(&state) % SLOT;
		length = 1 + random_number(&state) % MOST_SECTORS;
		/* Every second place is in whole pages. */
		if (random_number(&state) & 1) {
			start &= ~7;
			length = (length + 7) & ~7;
		}
		if (files)
			start = 0;
		plan.place[i].start = i * SLOT + start;
		plan.place[i].length = start + length > SLOT ? SLOT - start : length;
	}
	return plan;
}

/* Fills a sector with the data of a step: its number first. */
static void fill(char *data, uint64_t step, uint64_t sector)
{
	uint64_t state = (seed ^ step << 32) + sector, i;

	memcpy(data, &step, 8);
	for (i = 8; i < SECTOR; i += 8) {
		uint64_t word = random_number(&state);

		memcpy(data + i, &word, 8);
	}
}

/* --- writing */

static void acknowledge(uint64_t step, const char *mapping)
{
	static int control = -1;
	char request[sizeof(struct dm_ioctl) + sizeof(struct dm_target_msg) + 40] = { 0 };
	struct dm_ioctl *head = (void *)request;

	if (!mapping) {
		if (dprintf(1, "%" PRIu64 "\n", step) < 0)
			err(1, "standard output");
		return;
	}
	if (control < 0)
		control = open("/dev/mapper/control", O_RDWR);
	head->version[0] = DM_VERSION_MAJOR;
	head->data_size = sizeof(request);
	head->data_start = sizeof(*head);
	snprintf(head->name, sizeof(head->name), "%s", mapping);
	snprintf(request + sizeof(*head) + sizeof(struct dm_target_msg), 40, "mark %" PRIu64, step);
	if (ioctl(control, DM_TARGET_MSG, request))
		err(1, "mark of step %" PRIu64, step);
}

static void direct(int fd, const struct plan *plan, char *const data[], int durable)
{
	static aio_context_t context;
	struct iocb iocbs[PLACES] = { 0 }, *pointers[PLACES];
	struct io_event events[PLACES];
	unsigned int i;

	if (!context && syscall(SYS_io_setup, PLACES, &context))
		err(1, "io_setup");
	for (i = 0; i < plan->places; i++) {
		pointers[i] = &iocbs[i];
		iocbs[i] = (struct iocb){
			.aio_lio_opcode = IOCB_CMD_PWRITE,
			.aio_fildes = fd,
			.aio_rw_flags = durable ? RWF_DSYNC : 0,
			.aio_buf = (uintptr_t)data[i],
			.aio_nbytes = plan->place[i].length * SECTOR,
			.aio_offset = (int64_t)plan->place[i].start * SECTOR,
		};
	}
	if (syscall(SYS_io_submit, context, plan->places, pointers) != plan->places)
		err(1, "io_submit");
	if (syscall(SYS_io_getevents, context, plan->places, plan->places, events, NULL) != plan->places)
		err(1, "io_getevents");
	for (i = 0; i < plan->places; i++)
		if (events[i].res != (int64_t)((struct iocb *)(uintptr_t)events[i].obj)->aio_nbytes)
			errx(1, "a write returned %lld", events[i].res);
	if (plan->mode == SYNCED && fdatasync(fd))
		err(1, "fdatasync");
}

static void write_all(int fd, const char *data, size_t size, off_t at)
{
	if (pwrite(fd, data, size, at) != (ssize_t)size)
		err(1, "write of %zu bytes at %lld", size, (long long)at);
}

/* Between the two writes the driver finds out where the first one has got blocks. */
static void rewrite(int fd, const struct plan *plan, char *const data[])
{
	struct plan half = *plan;
	char *second[PLACES], *unused;
	unsigned int i;

	if (posix_memalign((void **)&unused, 4096, MOST_SECTORS * SECTOR))
		errx(1, "no memory");
	for (i = 0; i < plan->places; i++) {
		unsigned int skipped = plan->place[i].length / 2;

		if (pread(fd, unused, SECTOR, (off_t)plan->place[i].start * SECTOR) != SECTOR)
			err(1, "read");
		second[i] = data[i] + skipped * SECTOR;
		half.place[i].start += skipped;
		half.place[i].length -= skipped;
	}
	free(unused);
	usleep(20000);
	direct(fd, &half, second, 1);
}

/* Frees every second place, if the device can do that: it then reads as zeroes, too. */
static void zero(int fd, const struct plan *plan)
{
	unsigned int i;

	for (i = 0; i < plan->places; i++) {
		uint64_t range[] = { plan->place[i].start * SECTOR, plan->place[i].length * SECTOR };

		if ((plan->place[i].start / 8 + i) % 2 &&
		    !fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, range[0], range[1]))
			continue;
		if (ioctl(fd, BLKZEROOUT, range))
			err(1, "BLKZEROOUT");
	}
	if (fdatasync(fd))
		err(1, "fdatasync");
}

static void write_device(const char *path, const struct plan *plan, uint64_t step)
{
	static int fd = -1, cached = -1, unsynced = 1;
	char *data[PLACES], *next = buffer;
	unsigned int i, s;

	if (fd < 0)
		fd = open(path, O_RDWR | O_DIRECT), cached = open(path, O_RDWR);
	if (fd < 0 || cached < 0)
		err(1, "%s", path);
	/*
	 * dm-log-writes would log the writes that are not durable behind later durable ones.
	 * Another process may have made the first ones.
	 */
	if (unsynced && fdatasync(fd))
		err(1, "fdatasync");
	unsynced = plan->mode == REWRITTEN;
	for (i = 0; i < plan->places; i++) {
		data[i] = next;
		for (s = 0; s < plan->place[i].length; s++, next += SECTOR)
			fill(next, step, plan->place[i].start + s);
	}
	if (plan->mode == ZEROED) {
		zero(fd, plan);
		return;
	}
	if (plan->mode != BUFFERED) {
		direct(fd, plan, data, plan->mode == DURABLE);
		if (plan->mode == REWRITTEN)
			rewrite(fd, plan, data);
		return;
	}
	for (i = 0; i < plan->places; i++)
		write_all(cached, data[i], plan->place[i].length * SECTOR, (off_t)plan->place[i].start * SECTOR);
	if (fsync(cached))
		err(1, "fsync");
}

static void write_file(const char *path, const struct plan *plan, uint64_t step)
{
	static int directory = -1;
	char name[16];
	unsigned int s;
	int fd;

	if (directory < 0)
		directory = open(path, O_RDONLY | O_DIRECTORY);
	fd = openat(directory, "new", O_WRONLY | O_CREAT | O_TRUNC | (plan->mode == DURABLE ? O_DSYNC : 0), 0600);
	if (fd < 0)
		err(1, "%s/new", path);
	for (s = 0; s < plan->place[0].length; s++)
		fill(buffer + s * SECTOR, step, s);
	write_all(fd, buffer, plan->place[0].length * SECTOR, 0);
	snprintf(name, sizeof(name), "file%u", plan->file);
	if ((plan->mode != DURABLE && fsync(fd)) || close(fd) || renameat(directory, "new", directory, name) ||
	    fsync(directory))
		err(1, "%s/%s", path, name);
}

/* --- checking */

static uint64_t last, most, seen;

/* Returns the step that wrote a sector, 0 for none. The sector must hold only data of that step. */
static uint64_t step_of(const char *data, uint64_t sector, const char *where)
{
	static const char zero[SECTOR];
	char wanted[SECTOR];
	uint64_t step;

	memcpy(&step, data, 8);
	seen += SECTOR;
	if (!memcmp(data, zero, SECTOR))
		return 0;
	fill(wanted, step, sector);
	if (step > most || memcmp(data, wanted, SECTOR))
		errx(1, "%s, sector %" PRIu64 ": garbage, perhaps of step %" PRIu64, where, sector, step);
	return step;
}

static int writes(uint64_t step, uint64_t sector)
{
	struct plan p = plan(step);
	unsigned int slot = sector / SLOT;

	return !step || (slot < p.places && sector - p.place[slot].start < p.place[slot].length);
}

static void check_device(const char *path)
{
	static uint64_t acknowledged[SECTORS], zeroed[SECTORS];
	int fd = open(path, O_RDONLY | O_DIRECT);
	uint64_t step, sector;
	unsigned int i;

	if (fd < 0 || read(fd, buffer, SECTORS * SECTOR) != SECTORS * SECTOR)
		err(1, "%s", path);
	for (step = 1; step <= most; step++) {
		struct plan p = plan(step);

		for (i = 0; i < p.places; i++)
			for (sector = p.place[i].start; sector < p.place[i].start + p.place[i].length; sector++) {
				if (step <= last && (p.mode != REWRITTEN || sector >= p.place[i].start + p.place[i].length / 2))
					acknowledged[sector] = step;
				if (p.mode == ZEROED)
					zeroed[sector] = step;
			}
	}
	for (sector = 0; sector < SECTORS; sector++) {
		step = step_of(buffer + sector * SECTOR, sector, path);
		if (!step)
			step = zeroed[sector];
		if (step < acknowledged[sector])
			errx(1, "%s, sector %" PRIu64 ": of step %" PRIu64 ", but step %" PRIu64 " (mode %d) was acknowledged",
			     path, sector, step, acknowledged[sector], plan(acknowledged[sector]).mode);
		if (!writes(step, sector))
			errx(1, "%s, sector %" PRIu64 ": of step %" PRIu64 ", which did not write it", path, sector, step);
	}
}

static void check_file(const char *path, unsigned int file, uint64_t acknowledged)
{
	char name[4096];
	uint64_t step, sector;
	ssize_t size;
	int fd;

	snprintf(name, sizeof(name), "%s/file%u", path, file);
	fd = open(name, O_RDONLY);
	if (fd < 0 && errno == ENOENT && !acknowledged)
		return;
	if (fd < 0)
		err(1, "%s, which step %" PRIu64 " made", name, acknowledged);
	size = read(fd, buffer, SECTORS * SECTOR);
	close(fd);
	if (size < SECTOR)
		errx(1, "%s: %zd bytes", name, size);
	step = step_of(buffer, 0, name);
	if (!step || step < acknowledged)
		errx(1, "%s: of step %" PRIu64 ", but step %" PRIu64 " was acknowledged", name, step, acknowledged);
	if (plan(step).file != file || size != plan(step).place[0].length * SECTOR)
		errx(1, "%s: of step %" PRIu64 ", but has %zd bytes", name, step, size);
	for (sector = 1; sector < plan(step).place[0].length; sector++)
		if (step_of(buffer + sector * SECTOR, sector, name) != step)
			errx(1, "%s, sector %" PRIu64 ": not of step %" PRIu64 " like the first one", name, sector, step);
}

static void check_files(const char *path)
{
	uint64_t acknowledged[FILES] = { 0 }, step;
	unsigned int file;

	for (step = 1; step <= last; step++)
		acknowledged[plan(step).file] = step;
	for (file = 0; file < FILES; file++)
		check_file(path, file, acknowledged[file]);
}

int main(int argc, char **argv)
{
	uint64_t step;

	if (argc < 7 || (strcmp(argv[2], "device") && strcmp(argv[2], "files")))
		errx(2, "usage: acknowledged write device|files PATH SEED FIRST LAST [MAPPING], or check ... LAST MOST");
	files = !strcmp(argv[2], "files");
	seed = number(argv[4]);
	if (posix_memalign((void **)&buffer, 4096, SECTORS * SECTOR))
		errx(1, "no memory");
	if (!strcmp(argv[1], "write")) {
		for (step = number(argv[5]); step <= number(argv[6]); step++) {
			struct plan p = plan(step);

			(files ? write_file : write_device)(argv[3], &p, step);
			acknowledge(step, argv[7]);
		}
	} else {
		last = number(argv[5]);
		most = number(argv[6]);
		(files ? check_files : check_device)(argv[3]);
		printf("%" PRIu64 "\n", seen);
	}
	return 0;
}
