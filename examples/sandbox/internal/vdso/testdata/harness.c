// Maps a vDSO behind a data page of its own making, calls everything in it and
// prints what comes back. With a rate of 0 no answer depends on when it is given.
#define _GNU_SOURCE
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static struct { unsigned seq, mult; unsigned long tsc, base, realtime; } *data;
static char *base;

static void *find(const char *name)
{
	ElfW(Ehdr) *h = (void *)base;
	ElfW(Phdr) *p = (void *)(base + h->e_phoff);
	ElfW(Dyn) *d = 0;
	ElfW(Sym) *symbols = 0;
	char *strings = 0;
	unsigned *hash = 0;
	for (int i = 0; i < h->e_phnum; i++)
		if (p[i].p_type == PT_DYNAMIC) d = (void *)(base + p[i].p_vaddr);
	for (; d->d_tag; d++) {
		if (d->d_tag == DT_HASH) hash = (void *)(base + d->d_un.d_ptr);
		if (d->d_tag == DT_STRTAB) strings = base + d->d_un.d_ptr;
		if (d->d_tag == DT_SYMTAB) symbols = (void *)(base + d->d_un.d_ptr);
	}
	for (unsigned i = 0; i < hash[1]; i++)
		if (!strcmp(strings + symbols[i].st_name, name)) return base + symbols[i].st_value;
	return 0;
}

int main(int argc, char **argv)
{
	int fd = open(argv[1], O_RDONLY);
	char *at = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	data = (void *)at;
	base = mmap(at + 4096, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, fd, 0);
	if (base == MAP_FAILED) return 2;
	int (*get)(int, struct timespec *) = find("__vdso_clock_gettime"), (*res)(int, struct timespec *) = find("__vdso_clock_getres");
	int (*day)(struct timeval *, struct timezone *) = find("__vdso_gettimeofday");
	long (*sec)(long *) = find("__vdso_time"), (*cpu)(unsigned *, unsigned *, void *) = find("__vdso_getcpu");
	struct { unsigned mult; unsigned long tsc, base, realtime; } tests[] = {
		{ 0, 0, 0, 0 }, { 0, 0, 123456789012345678, 1700000000000000000 - 123456789012345678 },
		{ 0, 0, 999999999, 1 }, { 0, 0, 5, -5 }, { ~0u, ~0ul >> 2, 77, 1000000000 }, // a counter from the future
	};
	for (unsigned i = 0; i < sizeof tests / sizeof *tests; i++) {
		data->seq = 2 * i; data->mult = tests[i].mult; data->tsc = tests[i].tsc; data->base = tests[i].base; data->realtime = tests[i].realtime;
		for (int id = 0; id < 8; id++) {
			struct timespec t = { 1, 2 };
			int ret = get(id, &t);
			if (id == 0 || id == 1 || id == 5 || id == 6) printf("%d: %d %ld %ld\n", id, ret, t.tv_sec, t.tv_nsec);
			else printf("%d: %d\n", id, ret);
		}
		struct timeval tv; struct timezone tz = { 1, 1 }; long s = 0, r;
		printf("day %d", day(&tv, &tz)); printf(" %ld %ld %d %d\n", tv.tv_sec, tv.tv_usec, tz.tz_minuteswest, tz.tz_dsttime);
		printf("none %d\n", day(0, 0));
		r = sec(&s); printf("time %ld %ld %ld\n", r, s, sec(0));
	}
	// A rate: 2^31 is half a ns a tick.
	struct timespec a, b, now;
	data->mult = 1u << 31; data->base = 0; data->tsc = __builtin_ia32_rdtsc(); data->realtime = 0;
	get(1, &a); for (volatile int i = 0; i < 1000000; i++);
	unsigned long least = __builtin_ia32_rdtsc() - data->tsc;
	get(1, &b);
	unsigned long most = __builtin_ia32_rdtsc() - data->tsc, ns = b.tv_sec * 1000000000ul + b.tv_nsec, first = a.tv_sec * 1000000000ul + a.tv_nsec;
	printf("rate %d\n", ns >= least / 2 && ns <= most / 2 && first < ns);
	// A change that does not end: the system call answers.
	data->seq = 1;
	clock_gettime(1, &b); get(1, &a); clock_gettime(1, &now);
#define NS(t) ((t).tv_sec * 1000000000ul + (t).tv_nsec)
	printf("fallback %d %d\n", NS(b) <= NS(a) && NS(a) <= NS(now), day(&tv, 0) == 0 && tv.tv_sec > 1000000000 && sec(0) > 1000000000);
	struct timespec t; unsigned c = 99999;
	printf("rest %d %d %d\n", res(1, &t), (int)cpu(&c, 0, 0), c < 99999);
	return 0;
}
