// SPDX-License-Identifier: GPL-2.0
/*
 * mixed_batches DEVICE FILE MIB SECONDS
 *
 * Submits batches that alternate 128 KiB reads of DEVICE and 4 KiB reads of FILE, both MIB MiB
 * long, with direct I/O. Each 128 KiB request fills the task's plug, which the block layer flushes
 * while the next request, of FILE, has a tag and is on no list yet. Prints the number of batches
 * every second.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "random.h"

enum { BATCH = 4, LARGE = 128 << 10, SMALL = 4 << 10 };

static int open_direct(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);

	if (fd < 0)
		err(1, "%s", path);
	return fd;
}

int main(int argc, char **argv)
{
	struct io_event events[BATCH];
	struct iocb iocbs[BATCH], *list[BATCH];
	aio_context_t context = 0;
	unsigned long batches = 0;
	uint64_t state = 1;
	time_t end, shown = 0;
	char *memory;
	int fds[2];
	long size;

	if (argc != 5)
		errx(2, "usage: mixed_batches DEVICE FILE MIB SECONDS");
	fds[0] = open_direct(argv[1]);
	fds[1] = open_direct(argv[2]);
	size = number(argv[3]) << 20;
	end = time(NULL) + number(argv[4]);
	if (posix_memalign((void **)&memory, SMALL, BATCH * LARGE))
		err(1, "memory");
	if (syscall(SYS_io_setup, BATCH, &context))
		err(1, "io_setup");
	while (time(NULL) < end) {
		for (int i = 0; i < BATCH; i++) {
			long bytes = i % 2 ? SMALL : LARGE;

			iocbs[i] = (struct iocb){
				.aio_lio_opcode = IOCB_CMD_PREAD,
				.aio_fildes = fds[i % 2],
				.aio_buf = (uintptr_t)(memory + i * LARGE),
				.aio_nbytes = bytes,
				.aio_offset = random_number(&state) % (size / bytes) * bytes,
			};
			list[i] = &iocbs[i];
		}
		if (syscall(SYS_io_submit, context, BATCH, list) != BATCH)
			err(1, "io_submit");
		if (syscall(SYS_io_getevents, context, BATCH, BATCH, events, NULL) != BATCH)
			err(1, "io_getevents");
		for (int i = 0; i < BATCH; i++)
			if (events[i].res < 0)
				errx(1, "read: %lld", (long long)events[i].res);
		batches++;
		if (time(NULL) != shown) {
			shown = time(NULL);
			printf("%lu\n", batches);
			fflush(stdout);
		}
	}
	return 0;
}
