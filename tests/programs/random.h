/* SPDX-License-Identifier: GPL-2.0 */
/* Shared by the random programs: numbers that follow from a seed, and the parser of arguments. */
#include <err.h>
#include <stdint.h>
#include <stdlib.h>

/* splitmix64 */
static inline uint64_t random_number(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

static inline uint64_t number(const char *text)
{
	char *end;
	uint64_t value = strtoull(text, &end, 10);

	if (*end || end == text)
		errx(2, "'%s' is no number", text);
	return value;
}
