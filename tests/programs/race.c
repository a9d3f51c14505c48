// SPDX-License-Identifier: GPL-2.0
/*
 * race SEED SECONDS io|attach|change DEVICE IMAGE [IMAGE]
 *
 * Writers write a loop device on IMAGE (16 MiB, initially zeroes), read it, and verify the data,
 * while disturbers change everything about it. Data that a write or an fsync acknowledged must be
 * read from then on, never older or other data; at the end, from IMAGE as well.
 *
 * io: the device is bound from the start, and stays bound. No operation fails, except those of the
 * last writer, whose range is sometimes beyond the end of the device. attach: the device is
 * attached and detached all the time; an opener that has found it bound can rely on that until the
 * device is closed. change: the device is bound read-only, and its file changes between two images,
 * and its offset, after all have been filled. Each read shows one of them, and the right one if no
 * change was in progress.
 *
 * Prints its counts, such as "operations 1234"; exits with 1 at the first error.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "random.h"

#define BLOCK 4096
#define IMAGE_BLOCKS 4096
#define SHRUNK_BLOCKS 3328
#define WRITERS 4
#define RANGE 512
#define MOST_BLOCKS 64
#define DEPTH 16
#define DISTURBERS 3

/* Every version that is a multiple of this is zeroes. */
#define ZEROES 8

static uint64_t seed;
static int attaching, changing;
static const char *device, *image, *images[2];
static const char *name;
static atomic_bool over;
static atomic_ulong operations, bytes, writes;

struct writer {
	unsigned int number, first;
	uint64_t state;
	int direct, cached;
	aio_context_t context;
	char *buffer;
	/* For each block: the last acknowledged version, and the last written one. */
	uint32_t acknowledged[RANGE], tried[RANGE];
};

static struct writer all[WRITERS];

static uint64_t below(uint64_t *state, uint64_t limit)
{
	return random_number(state) % limit;
}

__attribute__((format(printf, 1, 2), noreturn))
static void wrong(const char *format, ...)
{
	va_list arguments;

	fprintf(stderr, "seed %llu: ", (unsigned long long)seed);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	_exit(1);
}

/* --- the content of a block */

static void fill(char *data, uint32_t block, uint32_t version)
{
	uint64_t state = seed ^ (uint64_t)block << 32 ^ version, i;

	if (version % ZEROES == 0) {
		memset(data, 0, BLOCK);
		return;
	}
	memcpy(data, &version, 4);
	memcpy(data + 4, &block, 4);
	for (i = 8; i < BLOCK; i += 8) {
		uint64_t word = random_number(&state);

		memcpy(data + i, &word, 8);
	}
}

static void verify(const struct writer *w, const char *data, unsigned int at, const char *how)
{
	static const char zeroes[BLOCK];
	uint32_t block = w->first + at, version, got, oldest = w->acknowledged[at], newest = w->tried[at];
	char wanted[BLOCK];

	memcpy(&got, data, 4);
	atomic_fetch_add(&bytes, BLOCK);
	if (!memcmp(data, zeroes, BLOCK)) {
		for (version = oldest; version <= newest; version++)
			if (version % ZEROES == 0)
				return;
		wrong("%s, block %u: zeroes instead of version %u to %u", how, block, oldest, newest);
	}
	fill(wanted, block, got);
	if (memcmp(data, wanted, BLOCK))
		wrong("%s, block %u: neither version %u to %u nor another; it begins with %u", how, block, oldest,
		      newest, got);
	if (got < oldest || got > newest)
		wrong("%s, block %u: version %u instead of %u to %u", how, block, got, oldest, newest);
}

static void verify_some(const struct writer *w, const char *data, unsigned int at, unsigned int count, const char *how)
{
	for (; count; count--, at++, data += BLOCK)
		verify(w, data, at, how);
}

/* --- writers */

/* Returns whether an operation failed for an allowed reason; any other failure is an error. */
static int failed(const struct writer *w, const char *what, ssize_t got, ssize_t wanted)
{
	if (got == wanted)
		return 0;
	/* Beyond the end of a device whose size was reduced. */
	if (!attaching && w->number == WRITERS - 1 && (got >= 0 || errno == EIO || errno == ENOSPC))
		return 1;
	wrong("writer %u, %s: %zd of %zd: %s", w->number, what, got, wanted, got < 0 ? strerror(errno) : "too little");
}

static void acknowledge(struct writer *w, unsigned int at, unsigned int count)
{
	for (; count; count--, at++)
		w->acknowledged[at] = w->tried[at];
	atomic_fetch_add(&operations, 1);
	atomic_fetch_add(&writes, 1);
}

/* Fills the data of the next write. */
static void fill_next(struct writer *w, char *data, unsigned int at, unsigned int count)
{
	for (; count; count--, at++, data += BLOCK) {
		do
			w->tried[at]++;
		while (w->tried[at] % ZEROES == 0);
		fill(data, w->first + at, w->tried[at]);
	}
}

static void write_some(struct writer *w, unsigned int at, unsigned int count, int cached)
{
	off_t offset = (off_t)(w->first + at) * BLOCK;
	ssize_t size = count * BLOCK, got;

	fill_next(w, w->buffer, at, count);
	got = pwrite(cached ? w->cached : w->direct, w->buffer, size, offset);
	if (failed(w, cached ? "buffered write" : "direct write", got, size))
		return;
	if (cached && failed(w, "fdatasync", fdatasync(w->cached), 0))
		return;
	acknowledge(w, at, count);
}

static void zero_some(struct writer *w, unsigned int at, unsigned int count)
{
	uint64_t range[2] = { (uint64_t)(w->first + at) * BLOCK, (uint64_t)count * BLOCK };
	unsigned int i;

	for (i = 0; i < count; i++)
		w->tried[at + i] = (w->tried[at + i] / ZEROES + 1) * ZEROES;
	if (ioctl(w->direct, BLKZEROOUT, range)) {
		if (attaching || w->number < WRITERS - 1 || (errno != EINVAL && errno != EIO && errno != ENOSPC))
			wrong("writer %u, BLKZEROOUT: %m", w->number);
		return;
	}
	acknowledge(w, at, count);
}

static void read_some(struct writer *w, unsigned int at, unsigned int count, int cached)
{
	off_t offset = (off_t)(w->first + at) * BLOCK;
	const char *how = cached ? "buffered read" : "direct read";

	if (cached && below(&w->state, 2))
		posix_fadvise(w->cached, offset, count * BLOCK, POSIX_FADV_DONTNEED);
	if (failed(w, how, pread(cached ? w->cached : w->direct, w->buffer, count * BLOCK, offset), count * BLOCK))
		return;
	verify_some(w, w->buffer, at, count, how);
	atomic_fetch_add(&operations, 1);
}

/* Transfers parts of the whole range in concurrent requests. */
static void transfer_many(struct writer *w)
{
	struct iocb requests[DEPTH] = { 0 }, *list[DEPTH];
	struct io_event events[DEPTH];
	unsigned int i, at, count;

	for (i = 0; i < DEPTH; i++) {
		struct iocb *r = list[i] = &requests[i];

		count = 1 + below(&w->state, RANGE / DEPTH);
		at = i * RANGE / DEPTH + below(&w->state, RANGE / DEPTH - count + 1);
		r->aio_lio_opcode = below(&w->state, 2) ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
		r->aio_fildes = w->direct;
		r->aio_buf = (uintptr_t)(w->buffer + at * BLOCK);
		r->aio_nbytes = count * BLOCK;
		r->aio_offset = (off_t)(w->first + at) * BLOCK;
		if (r->aio_lio_opcode == IOCB_CMD_PWRITE)
			fill_next(w, w->buffer + at * BLOCK, at, count);
	}
	if (syscall(SYS_io_submit, w->context, DEPTH, list) != DEPTH)
		wrong("io_submit: %m");
	if (syscall(SYS_io_getevents, w->context, DEPTH, DEPTH, events, NULL) != DEPTH)
		wrong("io_getevents: %m");
	for (i = 0; i < DEPTH; i++) {
		const struct iocb *r = (const struct iocb *)(uintptr_t)events[i].obj;

		errno = events[i].res < 0 ? -events[i].res : 0;
		if (failed(w, "one of many", events[i].res, r->aio_nbytes))
			continue;
		at = r->aio_offset / BLOCK - w->first;
		count = r->aio_nbytes / BLOCK;
		if (r->aio_lio_opcode == IOCB_CMD_PWRITE) {
			acknowledge(w, at, count);
			continue;
		}
		verify_some(w, w->buffer + at * BLOCK, at, count, "one read of many");
		atomic_fetch_add(&operations, 1);
	}
}

/*
 * The number of begins and ends of changes, and the current place of the device: bit 0 is the
 * image, bit 1 is set if the device begins in the middle of it. Changed under the lock.
 */
static atomic_uint changes, current;
static pthread_mutex_t change_lock = PTHREAD_MUTEX_INITIALIZER;

static void read_either(struct writer *w, unsigned int at, unsigned int count, int cached)
{
	unsigned int before = changes, now = current, i;
	uint32_t version;

	if (failed(w, "read", pread(cached ? w->cached : w->direct, w->buffer, count * BLOCK,
				    (off_t)(w->first + at) * BLOCK), count * BLOCK))
		return;
	for (i = 0; i < count; i++) {
		verify(w, w->buffer + i * BLOCK, at + i, "read");
		memcpy(&version, w->buffer + i * BLOCK, 4);
		if (before % 2 == 0 && changes == before && version != 1 + now)
			wrong("%s read, block %u: of the previous image, after %u changes", cached ? "buffered" : "direct",
			      w->first + at + i, before / 2);
	}
	atomic_fetch_add(&operations, 1);
}

static void operate(struct writer *w)
{
	unsigned int count = 1 + below(&w->state, below(&w->state, 4) ? 8 : MOST_BLOCKS);
	unsigned int at = below(&w->state, RANGE - count + 1);

	if (changing) {
		read_either(w, at, count, below(&w->state, 2));
		return;
	}
	switch (below(&w->state, 14)) {
	case 0 ... 3:
		write_some(w, at, count, 0);
		break;
	case 4:
		/* Writeback silently skips pages beyond the end, see block_write_full_folio(). */
		write_some(w, at, count, attaching || w->number < WRITERS - 1);
		break;
	case 5:
		zero_some(w, at, count);
		break;
	case 6 ... 7:
		transfer_many(w);
		break;
	case 8 ... 11:
		read_some(w, at, count, 0);
		break;
	default:
		read_some(w, at, count, 1);
	}
}

/* Opens the device; returns whether it is open and bound. */
static int open_device(struct writer *w)
{
	struct loop_info64 info;

	w->direct = open(device, (changing ? O_RDONLY : O_RDWR) | O_DIRECT | O_CLOEXEC);
	if (w->direct < 0) {
		if (errno != ENXIO || !attaching)
			wrong("open %s: %m", device);
		return 0;
	}
	if (ioctl(w->direct, LOOP_GET_STATUS64, &info)) {
		if (errno != ENXIO || !attaching)
			wrong("LOOP_GET_STATUS64: %m");
		close(w->direct);
		return 0;
	}
	w->cached = open(device, (changing ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	if (w->cached < 0)
		wrong("open %s, which is bound: %m", device);
	/* No read-ahead into ranges that others write. */
	posix_fadvise(w->cached, 0, 0, POSIX_FADV_RANDOM);
	return 1;
}

static void *writer(void *argument)
{
	struct writer *w = argument;
	unsigned int left;

	while (!over) {
		if (!open_device(w)) {
			usleep(100);
			continue;
		}
		for (left = attaching ? 1 + below(&w->state, 20) : -1U; left && !over; left--)
			operate(w);
		close(w->cached);
		close(w->direct);
	}
	return NULL;
}

/* --- disturbers */

/* Checks the result of a disturber, which may fail with these errors. */
static void tolerate(const char *what, int result)
{
	if (result < 0 && errno != EBUSY && errno != EINVAL && errno != EAGAIN && errno != ENXIO)
		wrong("%s: %m", what);
}

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	/* The attribute may not exist any more, or refuse the value now. */
	if (fd < 0)
		return;
	if (write(fd, text, strlen(text)) < 0 && errno == EIO)
		wrong("%s: %m", path);
	close(fd);
}

static void write_attribute(const char *attribute, const char *text)
{
	char path[256];

	snprintf(path, sizeof(path), "/sys/block/%s/%s", name, attribute);
	write_text(path, text);
}

/* Returns the offset of the device in its image. */
static uint64_t offset_of(unsigned int version)
{
	return version & 2 ? IMAGE_BLOCKS * BLOCK : 0;
}

static void set_status(int fd, uint64_t *state)
{
	struct loop_info64 info = { .lo_flags = below(state, 2) ? LO_FLAGS_AUTOCLEAR : 0 };

	if (!below(state, 4))
		info.lo_flags |= LO_FLAGS_PARTSCAN;
	if (!attaching && !changing && below(state, 2))
		info.lo_sizelimit = SHRUNK_BLOCKS * BLOCK;
	snprintf((char *)info.lo_file_name, LO_NAME_SIZE, "name%u", (unsigned int)below(state, 100));
	pthread_mutex_lock(&change_lock);
	info.lo_offset = offset_of(current);
	tolerate("LOOP_SET_STATUS64", ioctl(fd, LOOP_SET_STATUS64, &info));
	pthread_mutex_unlock(&change_lock);
}

static void resize(int fd, uint64_t *state)
{
	off_t size = IMAGE_BLOCKS * BLOCK + below(state, 64) * BLOCK;
	struct stat file;

	if (!changing && !stat(image, &file) && S_ISREG(file.st_mode) && truncate(image, size))
		wrong("truncate %s: %m", image);
	tolerate("LOOP_SET_CAPACITY", ioctl(fd, LOOP_SET_CAPACITY, 0));
}

static void set_block_size(int fd, uint64_t *state)
{
	tolerate("LOOP_SET_BLOCK_SIZE", ioctl(fd, LOOP_SET_BLOCK_SIZE, 512UL << below(state, 4)));
}

static void set_direct_io(int fd, uint64_t *state)
{
	tolerate("LOOP_SET_DIRECT_IO", ioctl(fd, LOOP_SET_DIRECT_IO, below(state, 2)));
}

static void read_partitions(int fd, uint64_t *state)
{
	(void)state;
	tolerate("BLKRRPART", ioctl(fd, BLKRRPART, 0));
}

static void look(int fd, uint64_t *state)
{
	static const char *const attributes[] = { "loop/backing_file", "loop/offset", "loop/sizelimit", "loop/dio",
						  "loop/autoclear", "size", "ro", "queue/logical_block_size",
						  "queue/write_cache", "stat", "rnull_loop/inline" };
	char path[256], text[4096];
	struct loop_info64 info;
	int file;

	tolerate("LOOP_GET_STATUS64", ioctl(fd, LOOP_GET_STATUS64, &info));
	snprintf(path, sizeof(path), "/sys/block/%s/%s", name,
		 attributes[below(state, sizeof(attributes) / sizeof(*attributes))]);
	file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return;
	if (read(file, text, sizeof(text)) < 0 && errno != ENODEV)
		wrong("%s: %m", path);
	close(file);
}

static void switch_tunables(int fd, uint64_t *state)
{
	static const char *const tunables[] = { "rnull_loop/inline", "rnull_loop/remap", "rnull_loop/nowait" };

	(void)fd;
	write_attribute(tunables[below(state, 3)], below(state, 2) ? "1" : "0");
}

static void switch_queue(int fd, uint64_t *state)
{
	static const char *const schedulers[] = { "none", "mq-deadline", "kyber", "bfq" };
	char text[16];

	(void)fd;
	if (below(state, 2)) {
		write_attribute("queue/scheduler", schedulers[below(state, 4)]);
	} else {
		snprintf(text, sizeof(text), "%u", 4U << below(state, 6));
		write_attribute("queue/nr_requests", text);
	}
}

/* Takes the last CPU offline, and online again at the end. */
static void plug_cpu(int fd, uint64_t *state)
{
	static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
	char path[64];

	(void)fd;
	snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%ld/online", sysconf(_SC_NPROCESSORS_CONF) - 1);
	if (below(state, 8) || pthread_mutex_trylock(&one))
		return;
	write_text(path, "0");
	usleep(below(state, 20000));
	write_text(path, "1");
	pthread_mutex_unlock(&one);
}

static void move_to_cgroup(int fd, uint64_t *state)
{
	static const char *const groups[] = { "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/race1/cgroup.procs",
					      "/sys/fs/cgroup/race2/cgroup.procs" };

	(void)fd;
	write_text(groups[below(state, 3)], "0");
}

static void drop_caches(int fd, uint64_t *state)
{
	(void)fd;
	if (!below(state, 8))
		write_text("/proc/sys/vm/drop_caches", below(state, 2) ? "1" : "3");
}

/* Claims the device for a while, as a file system does. */
static void hold(int fd, uint64_t *state)
{
	int holder = open(device, O_RDONLY | O_EXCL | O_CLOEXEC);

	(void)fd;
	if (holder < 0) {
		tolerate("open exclusively", holder);
		return;
	}
	usleep(below(state, 3000));
	close(holder);
}

static void add_and_remove(int fd, uint64_t *state)
{
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);

	(void)fd;
	if (control < 0)
		wrong("open /dev/loop-control: %m");
	switch (below(state, 3)) {
	case 0:
		ioctl(control, LOOP_CTL_ADD, 90);
		break;
	case 1:
		ioctl(control, LOOP_CTL_REMOVE, 90);
		break;
	default:
		/* The device in use cannot be removed. */
		if (!attaching && !ioctl(control, LOOP_CTL_REMOVE, atoi(name + 4)))
			wrong("LOOP_CTL_REMOVE of a bound device succeeded");
	}
	close(control);
}

static void attach(int fd, uint64_t *state)
{
	struct loop_config config = { .block_size = below(state, 2) ? 0 : 512U << below(state, 4) };
	int file = open(image, O_RDWR | O_CLOEXEC | (below(state, 2) ? O_DIRECT : 0));

	if (file < 0)
		wrong("open %s: %m", image);
	config.fd = file;
	config.info.lo_flags = below(state, 16) & (LO_FLAGS_AUTOCLEAR | LO_FLAGS_PARTSCAN);
	tolerate("LOOP_CONFIGURE", ioctl(fd, LOOP_CONFIGURE, &config));
	close(file);
}

static int set_offset(int fd, unsigned int version)
{
	struct loop_info64 info = { .lo_offset = offset_of(version) };

	return ioctl(fd, LOOP_SET_STATUS64, &info);
}

static int change_image(int fd, unsigned int version, int flags)
{
	const char *path = images[version & 1];
	int file = open(path, O_RDONLY | O_CLOEXEC | flags), result;

	if (file < 0)
		wrong("open %s: %m", path);
	result = ioctl(fd, LOOP_CHANGE_FD, file);
	close(file);
	return result;
}

static void change(int fd, uint64_t *state)
{
	int moves = below(state, 2), flags = below(state, 2) ? O_DIRECT : 0, result;
	unsigned int next;

	pthread_mutex_lock(&change_lock);
	next = current ^ (moves ? 2 : 1);
	changes++;
	result = moves ? set_offset(fd, next) : change_image(fd, next, flags);
	tolerate(moves ? "another offset" : "LOOP_CHANGE_FD", result);
	if (!result)
		current = next;
	changes++;
	pthread_mutex_unlock(&change_lock);
}

static void detach(int fd, uint64_t *state)
{
	(void)state;
	tolerate("LOOP_CLR_FD", ioctl(fd, LOOP_CLR_FD, 0));
}

static void (*const disturbances[])(int fd, uint64_t *state) = {
	set_status, resize,	  set_block_size, set_direct_io,  read_partitions, look, switch_tunables,
	switch_queue, plug_cpu,	  move_to_cgroup, drop_caches,	  hold,		   add_and_remove,
};
#define KINDS (sizeof(disturbances) / sizeof(*disturbances))

static void *disturber(void *argument)
{
	uint64_t state = seed + 1000 + (uintptr_t)argument;
	int fd;

	while (!over) {
		unsigned int kind = below(&state, KINDS);

		/* Not as often as possible, so that there is I/O in between. */
		usleep(below(&state, 3000));
		fd = open(device, (changing ? O_RDONLY : O_RDWR) | O_CLOEXEC);
		if (fd < 0) {
			tolerate("open", fd);
			continue;
		}
		if (changing && below(&state, 2))
			change(fd, &state);
		else if (attaching && below(&state, 2))
			(below(&state, 2) ? attach : detach)(fd, &state);
		else
			disturbances[kind](fd, &state);
		close(fd);
		atomic_fetch_add(&operations, 1);
	}
	return NULL;
}

/* --- */

static void prepare(struct writer *w, unsigned int number)
{
	w->number = number;
	/* With gaps, and after the blocks of a partition table. The last may be beyond the end. */
	w->first = 256 + number * (RANGE + 128);
	if (!attaching && !changing && number == WRITERS - 1)
		w->first = IMAGE_BLOCKS - RANGE;
	w->state = seed + number;
	if (posix_memalign((void **)&w->buffer, BLOCK, RANGE * BLOCK))
		wrong("no memory");
	if (syscall(SYS_io_setup, DEPTH, &w->context))
		wrong("io_setup: %m");
}

/* Fills the ranges of both images at both offsets, each with a version of its own. */
static void fill_images(struct writer *w)
{
	uint32_t which, i;

	for (which = 0; which < 4; which++) {
		const char *path = images[which & 1];
		int fd = open(path, O_WRONLY);

		for (i = 0; i < RANGE; i++) {
			w->acknowledged[i] = 1;
			w->tried[i] = 4;
			fill(w->buffer + i * BLOCK, w->first + i, 1 + which);
		}
		if (fd < 0 || pwrite(fd, w->buffer, RANGE * BLOCK, (off_t)w->first * BLOCK + offset_of(which)) != RANGE * BLOCK)
			wrong("%s: %m", path);
		close(fd);
	}
}

static void check_image(struct writer *w)
{
	struct stat file;
	int fd;

	/* The page cache of a disk is stale, because writes have bypassed it. */
	if (stat(image, &file))
		wrong("%s: %m", image);
	fd = open(image, O_RDONLY | (S_ISBLK(file.st_mode) ? O_DIRECT : 0));
	if (fd < 0 || pread(fd, w->buffer, RANGE * BLOCK, (off_t)w->first * BLOCK) != RANGE * BLOCK)
		wrong("%s: %m", image);
	close(fd);
	verify_some(w, w->buffer, 0, RANGE, image);
}

static void finish(int fd)
{
	struct loop_info64 info = { 0 };

	if (!attaching && !changing && (ioctl(fd, LOOP_SET_STATUS64, &info) || ioctl(fd, LOOP_SET_CAPACITY, 0) || fsync(fd)))
		wrong("afterwards: %m");
	/* A detach writes back to the file, but not to its disk. */
	ioctl(fd, LOOP_CLR_FD, 0);
	close(fd);
}

int main(int argc, char **argv)
{
	pthread_t threads[WRITERS + DISTURBERS];
	unsigned int i;
	int fd;

	if (argc < 6)
		wrong("usage: race SEED SECONDS io|attach|change DEVICE IMAGE [IMAGE]");
	seed = number(argv[1]);
	attaching = !strcmp(argv[3], "attach");
	changing = !strcmp(argv[3], "change");
	device = argv[4];
	images[0] = image = argv[5];
	images[1] = argv[6];
	name = strrchr(device, '/') + 1;
	/* Otherwise the last close might detach the device, if LO_FLAGS_AUTOCLEAR is set. */
	fd = attaching ? -1 : open(device, changing ? O_RDONLY : O_RDWR);
	/* Otherwise the cgroups are the same one to the block layer. */
	write_text("/sys/fs/cgroup/cgroup.subtree_control", "+io +memory");
	mkdir("/sys/fs/cgroup/race1", 0755);
	mkdir("/sys/fs/cgroup/race2", 0755);

	for (i = 0; i < WRITERS; i++) {
		prepare(&all[i], i);
		if (changing)
			fill_images(&all[i]);
		pthread_create(&threads[i], NULL, writer, &all[i]);
	}
	for (i = 0; i < DISTURBERS; i++)
		pthread_create(&threads[WRITERS + i], NULL, disturber, (void *)(uintptr_t)i);
	sleep(atoi(argv[2]));
	over = 1;
	for (i = 0; i < WRITERS + DISTURBERS; i++)
		pthread_join(threads[i], NULL);
	finish(attaching ? open(device, O_RDWR) : fd);
	for (i = 0; i < WRITERS; i++)
		check_image(&all[i]);
	printf("operations %lu\nwrites %lu\nbytes_verified %lu\n", operations, writes, bytes);
	return 0;
}
