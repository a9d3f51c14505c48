// SPDX-License-Identifier: GPL-2.0
/*
 * fuzz SEED CALLS loop|rnull_loop FILE...
 *
 * Threads send random valid and hostile ioctls to a few loop devices, with numbers from FIRST on,
 * and at the same time open, close, read, write, add and remove them. FILEs and the devices
 * themselves are attached. The possible results of each call are known from the C driver's source;
 * any other result ends the run, and so does a call that takes too long.
 *
 * The seed decides the calls of each thread; the scheduler decides their order. Calls that would
 * stack a device of the C driver on itself (by way of a partition) are left out.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/loop.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { FIRST = 400, DEVICES = 8, SLOTS = 24, THREADS = 6, FILES = 64, STUCK = 60 };

struct kind {
	const char *name;
	/* The possible errors of the C driver, 0 at the end. Success is possible unless `fails`. */
	int errors[8];
	bool fails;
};

enum {
	K_SET_FD,
	K_CONFIGURE,
	K_CHANGE_FD,
	K_CLR_FD,
	K_SET_STATUS,
	K_SET_STATUS64,
	K_GET_STATUS,
	K_GET_STATUS64,
	K_SET_CAPACITY,
	K_SET_DIRECT_IO,
	K_SET_BLOCK_SIZE,
	K_UNKNOWN,
	K_CTL_ADD,
	K_CTL_REMOVE,
	K_CTL_GET_FREE,
	K_CTL_UNKNOWN,
	K_OPEN,
	K_READ,
	K_WRITE,
	K_TRUNCATE,
	KINDS,
};

static const struct kind kinds[KINDS] = {
	[K_SET_FD] = { "SET_FD", { EBADF, EINVAL, EBUSY } },
	[K_CONFIGURE] = { "CONFIGURE", { EFAULT, EBADF, EINVAL, EBUSY, EOVERFLOW } },
	[K_CHANGE_FD] = { "CHANGE_FD", { EBADF, EINVAL, ENXIO } },
	[K_CLR_FD] = { "CLR_FD", { ENXIO } },
	[K_SET_STATUS] = { "SET_STATUS", { EPERM, EFAULT, ENXIO, EOVERFLOW } },
	[K_SET_STATUS64] = { "SET_STATUS64", { EPERM, EFAULT, ENXIO, EINVAL, EOVERFLOW } },
	[K_GET_STATUS] = { "GET_STATUS", { EINVAL, ENXIO, EOVERFLOW, EFAULT } },
	[K_GET_STATUS64] = { "GET_STATUS64", { EINVAL, ENXIO, EFAULT } },
	[K_SET_CAPACITY] = { "SET_CAPACITY", { EPERM, ENXIO } },
	[K_SET_DIRECT_IO] = { "SET_DIRECT_IO", { EPERM, ENXIO, EINVAL } },
	[K_SET_BLOCK_SIZE] = { "SET_BLOCK_SIZE", { EPERM, EBUSY, ENXIO, EINVAL } },
	[K_UNKNOWN] = { "unknown", { EINVAL }, .fails = true },
	[K_CTL_ADD] = { "CTL_ADD", { EEXIST, EINVAL } },
	[K_CTL_REMOVE] = { "CTL_REMOVE", { ENODEV, EBUSY, EINVAL } },
	[K_CTL_GET_FREE] = { "CTL_GET_FREE", { 0 } },
	[K_CTL_UNKNOWN] = { "CTL unknown", { ENOSYS }, .fails = true },
	[K_OPEN] = { "open", { ENOENT, ENXIO, EBUSY } },
	[K_READ] = { "read", { EIO, ENXIO, EINVAL } },
	[K_WRITE] = { "write", { EIO, ENXIO, EINVAL, EPERM, ENOSPC, EBADF } },
	[K_TRUNCATE] = { "truncate", { 0 } },
};

/* An open device, or one of its partitions. Its opener holds the lock for writing. */
struct slot {
	pthread_rwlock_t lock;
	int fd;
	bool partition;
};

struct thread {
	pthread_t id;
	uint64_t state;
	unsigned long calls, wanted;
	/* The kind of the current call, and its start. */
	int kind;
	time_t since;
	unsigned long counts[KINDS][134];
	unsigned char *buffer, *edge;
};

static struct slot slots[SLOTS];
static struct thread threads[THREADS];
static int files[FILES], nr_files, control;
static bool cautious;
static unsigned char *protected;
static pthread_mutex_t fail_lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t roll(struct thread *t)
{
	/* xorshift64* */
	t->state ^= t->state >> 12;
	t->state ^= t->state << 25;
	t->state ^= t->state >> 27;
	return t->state * 0x2545f4914f6cdd1dull >> 16;
}

static unsigned int below(struct thread *t, unsigned int limit)
{
	return roll(t) % limit;
}

static bool chance(struct thread *t, unsigned int percent)
{
	return below(t, 100) < percent;
}

#define PICK(t, array) ((array)[below(t, sizeof(array) / sizeof((array)[0]))])

static void failed(const char *what, const char *why)
{
	pthread_mutex_lock(&fail_lock);
	printf("%s: %s\n", what, why);
	fflush(stdout);
	_exit(1);
}

static void begin(struct thread *t, int kind)
{
	__atomic_store_n(&t->kind, kind, __ATOMIC_RELAXED);
	__atomic_store_n(&t->since, time(NULL), __ATOMIC_RELAXED);
}

/* Counts a call, and checks its result. */
static long done(struct thread *t, int kind, long result)
{
	const struct kind *k = &kinds[kind];
	int error = result < 0 ? errno : 0, n = 0;

	__atomic_store_n(&t->since, 0, __ATOMIC_RELAXED);
	__atomic_add_fetch(&t->calls, 1, __ATOMIC_RELAXED);
	t->counts[kind][error < 133 ? error : 133]++;
	if (!error && k->fails)
		failed(k->name, "succeeded");
	while (error && k->errors[n] != error)
		if (!k->errors[n++])
			failed(k->name, strerrorname_np(error) ?: "an unknown error");
	return result;
}

static long call(struct thread *t, int kind, int fd, unsigned int command, unsigned long argument)
{
	begin(t, kind);
	return done(t, kind, ioctl(fd, command, argument));
}

/* --- arguments */

static uint64_t number(struct thread *t)
{
	static const uint64_t limits[] = {
		0, 1, 511, 512, 4096, 65536, 1ull << 20,
		INT32_MAX, 1ull << 32, INT64_MAX, UINT64_MAX,
	};

	return chance(t, 20) ? roll(t) : PICK(t, limits) + below(t, 5) - 2;
}

/* Returns an offset or a limit, often one that keeps the device usable. */
static uint64_t offset(struct thread *t)
{
	return chance(t, 60) ? 512ull * below(t, 64) : number(t);
}

static unsigned long bad_pointer(struct thread *t)
{
	unsigned long pointers[] = {
		0, 8, 4096, (unsigned long)protected, 0x7ffffffff000, 0x800000000000,
		0xffff888000000000, 0xffffffff81000000, -1ul, -4096ul, roll(t),
		/* The end of the structure is in an unmapped page. */
		(unsigned long)t->edge - 1 - below(t, 100),
	};

	return PICK(t, pointers);
}

/* Returns a descriptor to attach: a file, a device of this program, or an invalid one. */
static int backing(struct thread *t, bool no_device)
{
	const struct slot *slot = &slots[below(t, SLOTS)];
	int fd;

	if (chance(t, 10))
		return PICK(t, ((int[]){ -1, INT32_MAX, INT32_MIN, 1000, 0, 1, 2, control }));
	if (no_device || chance(t, 70))
		return files[below(t, nr_files)];
	/* The descriptor may be closed, or belong to another device, when it is used. */
	fd = __atomic_load_n(&slot->fd, __ATOMIC_RELAXED);
	return cautious && slot->partition ? -1 : fd;
}

static void fill_info(struct thread *t, struct loop_info64 *info, bool hostile)
{
	/* The first ten are valid. */
	static const uint32_t flags[] = {
		0, 0, 1, 4, 8, 16, 24, 12, 20, 29, 31, 2, 32, 0xffffffff,
	};
	uint64_t *words = (uint64_t *)info;

	memset(info, 0, sizeof(*info));
	if (hostile && chance(t, 10)) {
		for (unsigned int n = 0; n < sizeof(*info) / sizeof(*words); n++)
			words[n] = roll(t) << 20 ^ roll(t);
		return;
	}
	info->lo_flags = chance(t, 90) ? flags[below(t, 10)] : PICK(t, flags);
	if (chance(t, 30))
		info->lo_offset = offset(t);
	if (chance(t, 30))
		info->lo_sizelimit = offset(t);
	if (hostile && chance(t, 10))
		info->lo_encrypt_type = number(t);
	if (hostile && chance(t, 10))
		info->lo_encrypt_key_size = number(t);
	memset(info->lo_file_name, 'a' + below(t, 26), below(t, LO_NAME_SIZE + 1));
}

static uint32_t block_size(struct thread *t)
{
	return chance(t, 70) ? (chance(t, 40) ? 0 : 512u << below(t, 8)) : number(t);
}

/* --- cheap calls, most of the time */

static void cheap_call(struct thread *t, int fd)
{
	/* No open descriptors, also when truncated to 32 bits. */
	static const long closed[] = { -1, 1000, INT32_MAX, 1ul << 31, 1ul << 40 | 999 };
	struct loop_config *config = (void *)t->buffer;
	unsigned long pointer = chance(t, 80) ? (unsigned long)t->buffer : bad_pointer(t);

	switch (below(t, 12)) {
	case 0:
	case 1:
		call(t, K_GET_STATUS, fd, LOOP_GET_STATUS, pointer);
		break;
	case 2:
	case 3:
	case 4:
		call(t, K_GET_STATUS64, fd, LOOP_GET_STATUS64, pointer);
		break;
	case 5:
		call(t, K_UNKNOWN, fd, 0x4c0b + below(t, 0x74), roll(t));
		break;
	case 6:
		call(t, K_SET_FD, fd, LOOP_SET_FD, PICK(t, closed));
		break;
	case 7:
		call(t, K_CHANGE_FD, fd, LOOP_CHANGE_FD, PICK(t, closed));
		break;
	case 8:
		call(t, K_SET_STATUS64, fd, LOOP_SET_STATUS64,
		     chance(t, 50) ? 0 : (unsigned long)protected);
		break;
	case 9:
		call(t, K_SET_STATUS, fd, LOOP_SET_STATUS, (unsigned long)protected);
		break;
	case 10:
		fill_info(t, &config->info, true);
		config->fd = 1000;
		config->block_size = number(t);
		call(t, K_CONFIGURE, fd, LOOP_CONFIGURE, chance(t, 50) ? pointer : bad_pointer(t));
		break;
	case 11:
		if (chance(t, 50))
			call(t, K_CTL_UNKNOWN, control, 0x4c83 + below(t, 100), roll(t));
		else
			call(t, K_CTL_REMOVE, control, LOOP_CTL_REMOVE, -1ul - below(t, 1000));
		break;
	}
}

/* --- calls that may change something */

static void set_status(struct thread *t, int fd)
{
	struct loop_info *old = (void *)t->buffer;
	struct loop_info64 info;

	fill_info(t, &info, true);
	if (chance(t, 60)) {
		memcpy(t->buffer, &info, sizeof(info));
		call(t, K_SET_STATUS64, fd, LOOP_SET_STATUS64, (unsigned long)t->buffer);
		return;
	}
	memset(old, below(t, 256), sizeof(*old));
	old->lo_offset = info.lo_offset;
	old->lo_flags = info.lo_flags;
	call(t, K_SET_STATUS, fd, LOOP_SET_STATUS, (unsigned long)old);
}

static void configure(struct thread *t, int fd)
{
	struct loop_config *config = (void *)t->buffer;
	bool hostile = chance(t, 30);

	memset(config, chance(t, 90) ? 0 : 0xff, sizeof(*config));
	fill_info(t, &config->info, hostile);
	config->fd = backing(t, false);
	config->block_size = hostile ? block_size(t) : 0;
	call(t, K_CONFIGURE, fd, LOOP_CONFIGURE,
	     hostile && chance(t, 10) ? bad_pointer(t) : (unsigned long)config);
}

static void control_call(struct thread *t)
{
	int index = FIRST + below(t, DEVICES);
	long made;

	switch (below(t, 8)) {
	case 0:
		call(t, K_CTL_GET_FREE, control, LOOP_CTL_GET_FREE, number(t));
		break;
	case 1:
		/* Any device, outside of the numbers of this program. */
		made = call(t, K_CTL_ADD, control, LOOP_CTL_ADD, -1ul - below(t, 1000));
		if (made >= 0 && (made < FIRST || made >= FIRST + DEVICES))
			call(t, K_CTL_REMOVE, control, LOOP_CTL_REMOVE, made);
		break;
	case 2:
		call(t, K_CTL_ADD, control, LOOP_CTL_ADD, (1ul << 20) + below(t, 1000));
		break;
	case 3:
		call(t, K_CTL_REMOVE, control, LOOP_CTL_REMOVE, index);
		break;
	default:
		call(t, K_CTL_ADD, control, LOOP_CTL_ADD, index | (chance(t, 20) ? 1ul << 40 : 0));
		break;
	}
}

static void io(struct thread *t, int fd)
{
	static const unsigned int sizes[] = { 1, 511, 512, 513, 1024, 4096, 8192, 65536 };
	/* The partition table of a file is in its first sectors. */
	off_t place = chance(t, 80) ? 65536 + 512ll * below(t, 1900) : (off_t)(number(t) >> 1);
	unsigned int size = PICK(t, sizes);
	long result;

	if (chance(t, 50)) {
		begin(t, K_READ);
		result = pread(fd, t->buffer, size, chance(t, 50) ? 0 : place);
		done(t, K_READ, result);
		return;
	}
	if (place < 65536)
		place = 65536;
	begin(t, K_WRITE);
	result = pwrite(fd, t->buffer, size, place);
	done(t, K_WRITE, result);
}

static void device_call(struct thread *t, const struct slot *slot)
{
	int fd = slot->fd;

	switch (below(t, 24)) {
	case 0:
	case 1:
	case 2:
	case 3:
		configure(t, fd);
		break;
	case 4:
	case 5:
		call(t, K_SET_FD, fd, LOOP_SET_FD, (unsigned int)backing(t, false));
		break;
	case 6:
	case 7:
	case 8:
		call(t, K_CHANGE_FD, fd, LOOP_CHANGE_FD,
		     (unsigned int)backing(t, cautious && slot->partition));
		break;
	case 9:
	case 10:
		call(t, K_CLR_FD, fd, LOOP_CLR_FD, number(t));
		break;
	case 11:
	case 12:
	case 13:
		set_status(t, fd);
		break;
	case 14:
		call(t, K_SET_CAPACITY, fd, LOOP_SET_CAPACITY, number(t));
		break;
	case 15:
	case 16:
		call(t, K_SET_DIRECT_IO, fd, LOOP_SET_DIRECT_IO,
		     chance(t, 50) ? below(t, 2) : number(t));
		break;
	case 17:
		call(t, K_SET_BLOCK_SIZE, fd, LOOP_SET_BLOCK_SIZE,
		     block_size(t) | (chance(t, 20) ? roll(t) << 32 : 0));
		break;
	default:
		io(t, fd);
		break;
	}
}

/* Closes the device of a slot, and opens another one. */
static void reopen(struct thread *t, struct slot *slot)
{
	static const int modes[] = {
		O_RDWR, O_RDWR, O_RDWR, O_RDONLY, O_RDONLY, O_RDWR | O_DIRECT, O_RDONLY | O_DIRECT,
		O_RDWR | O_EXCL, O_RDONLY | O_EXCL,
	};
	int mode = PICK(t, modes), fd = -1, index = FIRST + below(t, DEVICES);
	unsigned int part = chance(t, 20) ? 1 + below(t, 2) : 0;
	char path[32];

	if (pthread_rwlock_trywrlock(&slot->lock))
		return;
	if (slot->fd >= 0) {
		begin(t, K_OPEN);
		close(slot->fd);
		__atomic_store_n(&slot->fd, -1, __ATOMIC_RELAXED);
	}
	if (chance(t, 60)) {
		snprintf(path, sizeof(path), part ? "/dev/loop%dp%u" : "/dev/loop%d", index, part);
		begin(t, K_OPEN);
		fd = done(t, K_OPEN, open(path, mode | O_CLOEXEC));
	}
	slot->partition = part;
	__atomic_store_n(&slot->fd, fd, __ATOMIC_RELAXED);
	pthread_rwlock_unlock(&slot->lock);
	t->since = 0;
}

/* Files grow and shrink under their devices. */
static void resize(struct thread *t)
{
	int file = files[below(t, nr_files)];
	static const off_t sizes[] = {
		1 << 20, 1 << 20, 1 << 20, (1 << 20) + 511, 1 << 18, 2 << 20,
	};

	struct stat stat;

	if ((fcntl(file, F_GETFL) & (O_ACCMODE | O_PATH)) != O_RDWR)
		return;
	if (fstat(file, &stat) || !S_ISREG(stat.st_mode))
		return;
	begin(t, K_TRUNCATE);
	done(t, K_TRUNCATE, ftruncate(file, PICK(t, sizes)));
}

static void step(struct thread *t)
{
	struct slot *slot = &slots[below(t, SLOTS)];
	unsigned int what = below(t, 1000);

	if (what < 20) {
		reopen(t, slot);
	} else if (what < 23) {
		control_call(t);
	} else if (what < 24) {
		resize(t);
	} else if (!pthread_rwlock_tryrdlock(&slot->lock)) {
		if (slot->fd >= 0 && what < 70)
			device_call(t, slot);
		else if (slot->fd >= 0)
			cheap_call(t, slot->fd);
		pthread_rwlock_unlock(&slot->lock);
	}
}

/* Drops CAP_SYS_ADMIN of this thread alone. */
static void drop_admin(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data))
		failed("capget", strerror(errno));
	data[0].effective &= ~(1u << CAP_SYS_ADMIN);
	if (syscall(SYS_capset, &header, data))
		failed("capset", strerror(errno));
}

static void *run(void *argument)
{
	struct thread *t = argument;

	/* Two threads have no CAP_SYS_ADMIN. */
	if (t - threads < 2)
		drop_admin();
	while (t->calls < t->wanted)
		step(t);
	return NULL;
}

/* --- before and after */

static void add_file(int fd, const char *what)
{
	if (fd < 0)
		failed(what, strerror(errno));
	if (nr_files < FILES)
		files[nr_files++] = fd;
}

static void open_files(char **paths)
{
	int ends[2];

	for (; *paths; paths++) {
		/* Mostly with the flags that programs use. */
		for (int n = 0; n < 3; n++)
			add_file(open(*paths, O_RDWR | O_CLOEXEC), *paths);
		add_file(open(*paths, O_RDONLY | O_CLOEXEC), *paths);
		add_file(open(*paths, O_RDONLY | O_CLOEXEC), *paths);
		add_file(open(*paths, O_RDWR | O_DIRECT | O_CLOEXEC), *paths);
	}
	add_file(open(paths[-1], O_PATH | O_CLOEXEC), paths[-1]);
	add_file(open("/tmp", O_RDONLY | O_CLOEXEC), "/tmp");
	add_file(open("/dev/zero", O_RDWR | O_CLOEXEC), "/dev/zero");
	add_file(open("/proc/kmsg", O_RDONLY | O_CLOEXEC), "/proc/kmsg");
	add_file(open("/proc/version", O_RDONLY | O_CLOEXEC), "/proc/version");
	add_file(pipe2(ends, O_CLOEXEC) ? -1 : ends[0], "pipe");
	add_file(ends[1], "pipe");
	add_file(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
}

/* Each device has several seconds, because udev may have it open, and devices are stacked. */
static void take_down(void)
{
	char path[32];
	int fd, n, tries;

	for (n = 0; n < SLOTS; n++)
		if (slots[n].fd >= 0)
			close(slots[n].fd);
	for (n = FIRST; n < FIRST + DEVICES; n++) {
		snprintf(path, sizeof(path), "/dev/loop%d", n);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			continue;
		ioctl(fd, LOOP_CLR_FD);
		close(fd);
	}
	for (n = FIRST; n < FIRST + DEVICES; n++) {
		snprintf(path, sizeof(path), "removing loop%d", n);
		for (tries = 0; ioctl(control, LOOP_CTL_REMOVE, n) && errno != ENODEV; tries++) {
			if (tries == 200)
				failed(path, strerrorname_np(errno));
			usleep(100000);
		}
	}
}

static void report(void)
{
	unsigned long counts[134];

	for (int kind = 0; kind < KINDS; kind++) {
		printf("# %s:", kinds[kind].name);
		memset(counts, 0, sizeof(counts));
		for (int n = 0; n < THREADS; n++)
			for (int error = 0; error < 134; error++)
				counts[error] += threads[n].counts[kind][error];
		for (int error = 0; error < 134; error++)
			if (counts[error])
				printf(" %s %lu", error ? strerrorname_np(error) : "done",
				       counts[error]);
		printf("\n");
	}
}

/* Waits until all threads are done, and reports progress. */
static void watch(unsigned long wanted)
{
	unsigned long calls = 0, before = 0;
	time_t start = time(NULL), now, since;
	char why[64];

	while (calls < wanted) {
		sleep(1);
		now = time(NULL);
		calls = 0;
		for (int n = 0; n < THREADS; n++) {
			calls += __atomic_load_n(&threads[n].calls, __ATOMIC_RELAXED);
			since = __atomic_load_n(&threads[n].since, __ATOMIC_RELAXED);
			snprintf(why, sizeof(why), "has taken more than %d s", STUCK);
			if (since && now - since > STUCK)
				failed(kinds[threads[n].kind].name, why);
		}
		if ((now - start) % 10 == 0 || calls >= wanted) {
			printf("# %lu calls in %ld s, %lu in the last 10\n", calls, now - start,
			       calls - before);
			fflush(stdout);
			before = calls;
		}
	}
}

int main(int argc, char **argv)
{
	uint64_t seed;
	unsigned long wanted;

	if (argc < 5)
		return 2;
	seed = strtoull(argv[1], NULL, 0);
	wanted = strtoul(argv[2], NULL, 0) / THREADS;
	cautious = !strcmp(argv[3], "loop");
	control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		failed("/dev/loop-control", strerror(errno));
	open_files(argv + 4);
	protected = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int n = 0; n < SLOTS; n++) {
		pthread_rwlock_init(&slots[n].lock, NULL);
		slots[n].fd = -1;
	}
	for (int n = 0; n < THREADS; n++) {
		struct thread *t = &threads[n];

		t->state = (seed + 1) * 0x9e3779b97f4a7c15ull + n * 0xbf58476d1ce4e5b9ull;
		t->wanted = wanted;
		/* An inaccessible page follows. */
		t->buffer = mmap(NULL, 65536 + 4096, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		t->edge = t->buffer + 65536;
		if (t->buffer == MAP_FAILED || mprotect(t->edge, 4096, PROT_NONE))
			failed("mmap", strerror(errno));
		if (pthread_create(&t->id, NULL, run, t))
			failed("pthread_create", "failed");
	}
	watch(wanted * THREADS);
	for (int n = 0; n < THREADS; n++)
		pthread_join(threads[n].id, NULL);
	report();
	take_down();
	return 0;
}
