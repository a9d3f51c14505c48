// SPDX-License-Identifier: GPL-2.0
/*
 * ioctl FD COMMAND [low|high|NUMBER] [FIELD=VALUE...]
 *
 * Sends one LOOP_* ioctl to an inherited descriptor, with the kernel's own structure for it, and
 * prints its result, or minus the name of its error. Built with -m32 it is a 32-bit program. The
 * structure is below or above 2 GiB. Its fields are set to the given values before the call, and
 * printed after a status ioctl that reads it. NUMBER is an argument that is passed as it is.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/loop.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

union argument {
	struct loop_info old;
	struct loop_info64 info;
	struct loop_config config;
};

static struct loop_info64 *info_of(unsigned int command, union argument *argument)
{
	return command == LOOP_CONFIGURE ? &argument->config.info : &argument->info;
}

static int set_old(struct loop_info *info, const char *name, unsigned long long value)
{
	if (!strcmp(name, "offset"))
		info->lo_offset = value;
	else if (!strcmp(name, "flags"))
		info->lo_flags = value;
	else if (!strcmp(name, "encrypt_type"))
		info->lo_encrypt_type = value;
	else if (!strcmp(name, "encrypt_key_size"))
		info->lo_encrypt_key_size = value;
	else
		return -1;
	return 0;
}

static int set_new(unsigned int command, union argument *argument, const char *name,
		   unsigned long long value)
{
	struct loop_info64 *info = info_of(command, argument);

	if (!strcmp(name, "offset"))
		info->lo_offset = value;
	else if (!strcmp(name, "sizelimit"))
		info->lo_sizelimit = value;
	else if (!strcmp(name, "flags"))
		info->lo_flags = value;
	else if (!strcmp(name, "encrypt_type"))
		info->lo_encrypt_type = value;
	else if (!strcmp(name, "encrypt_key_size"))
		info->lo_encrypt_key_size = value;
	else if (!strcmp(name, "fd"))
		argument->config.fd = value;
	else if (!strcmp(name, "block_size"))
		argument->config.block_size = value;
	else
		return -1;
	return 0;
}

static void set_field(unsigned int command, union argument *argument, char *text)
{
	int old = command == LOOP_SET_STATUS || command == LOOP_GET_STATUS;
	char *value = strchr(text, '=');
	int failed = !value;

	if (value) {
		*value++ = 0;
		if (!strcmp(text, "name"))
			/* Not terminated when it fills the field. */
			memcpy(old ? (uint8_t *)argument->old.lo_name :
				     info_of(command, argument)->lo_file_name,
			       value, strnlen(value, LO_NAME_SIZE));
		else if (old)
			failed = set_old(&argument->old, text, strtoull(value, NULL, 0));
		else
			failed = set_new(command, argument, text, strtoull(value, NULL, 0));
	}
	if (failed) {
		fprintf(stderr, "no field '%s'\n", text);
		exit(2);
	}
}

static void print_status(unsigned int command, const union argument *argument)
{
	const struct loop_info *old = &argument->old;
	const struct loop_info64 *info = &argument->info;

	if (command == LOOP_GET_STATUS)
		printf("number=%d\ndevice=%llu\ninode=%llu\nrdevice=%llu\n"
		       "offset=%d\nflags=%d\nname=%.64s\n",
		       old->lo_number, (unsigned long long)old->lo_device,
		       (unsigned long long)old->lo_inode, (unsigned long long)old->lo_rdevice,
		       old->lo_offset, old->lo_flags, old->lo_name);
	else if (command == LOOP_GET_STATUS64)
		printf("number=%u\ndevice=%llu\ninode=%llu\nrdevice=%llu\n"
		       "offset=%llu\nflags=%u\nname=%.64s\n",
		       info->lo_number, (unsigned long long)info->lo_device,
		       (unsigned long long)info->lo_inode, (unsigned long long)info->lo_rdevice,
		       (unsigned long long)info->lo_offset, info->lo_flags, info->lo_file_name);
}

/* Maps a page for the structure, which shows writes behind its end. */
static void *place(const char *where)
{
	void *hint = (void *)(uintptr_t)(!strcmp(where, "high") ? 0xb0000000 : 0x10000000);
	void *page = mmap(hint, 4096, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (page == MAP_FAILED) {
		perror("mmap");
		exit(2);
	}
	return page;
}

static size_t size_of(unsigned int command)
{
	switch (command) {
	case LOOP_SET_STATUS:
	case LOOP_GET_STATUS:
		return sizeof(struct loop_info);
	case LOOP_CONFIGURE:
		return sizeof(struct loop_config);
	default:
		return sizeof(struct loop_info64);
	}
}

int main(int argc, char **argv)
{
	unsigned char *page = NULL;
	unsigned int command;
	unsigned long value = 0;
	size_t size, n;
	int result;

	if (argc < 3)
		return 2;
	command = strtoul(argv[2], NULL, 0);
	size = size_of(command);
	if (argc > 3 && (!strcmp(argv[3], "low") || !strcmp(argv[3], "high"))) {
		page = place(argv[3]);
		memset(page + size, 0xa5, 4096 - size);
		for (int i = 4; i < argc; i++)
			set_field(command, (void *)page, argv[i]);
		value = (uintptr_t)page;
	} else if (argc > 3) {
		value = strtoul(argv[3], NULL, 0);
	}
	result = ioctl(atoi(argv[1]), command, value);
	if (result < 0)
		printf("-%s\n", strerrorname_np(errno));
	else
		printf("%d\n", result);
	if (page && !result)
		print_status(command, (void *)page);
	for (n = size; page && n < 4096; n++) {
		if (page[n] != 0xa5) {
			fprintf(stderr, "byte %zu behind %zu was written\n", n, size);
			return 2;
		}
	}
	return 0;
}
