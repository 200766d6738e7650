/*
 * The shared object that a guest finds by AT_SYSINFO_EHDR: clocks that cost no
 * exit. One page of code and one page of data before it, which the sandbox
 * keeps up to date (kernel/timekeeper.go):
 *
 *     vvar    struct data, read-only here
 *     vdso    this file, ELF header first
 *
 * A reading of CLOCK_MONOTONIC is base + (rdtsc - tsc) * mult >> 32. The
 * sandbox makes seq odd, reads the counter, changes the rest and makes seq even
 * again; whoever saw one even seq before and after has read its counter before
 * that of the change, so that the clock never goes back.
 */
typedef unsigned long u64;
typedef unsigned int u32;

struct data {
	u32 seq;
	u32 mult;     /* ns per tick, times 2^32 */
	u64 tsc;      /* the guest's counter at base */
	u64 base;     /* CLOCK_MONOTONIC in ns */
	u64 realtime; /* CLOCK_REALTIME less CLOCK_MONOTONIC in ns */
};

struct timespec { long sec, nsec; };
struct timeval { long sec, usec; };

extern const char __ehdr_start[] __attribute__((visibility("hidden")));
#define DATA ((const volatile struct data *)(__ehdr_start - 4096))

enum {
	REALTIME = 0, MONOTONIC = 1, REALTIME_COARSE = 5, MONOTONIC_COARSE = 6,
	SYS_gettimeofday = 96, SYS_time = 201, SYS_clock_gettime = 228, SYS_clock_getres = 229, SYS_getcpu = 309,
	SECOND = 1000000000,
	TRIES = 1000, /* a change takes a microsecond, or as long as the sandbox is kept from running */
};

static long call(long nr, long a, long b, long c)
{
	long ret;
	__asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return ret;
}

static u64 counter(void)
{
	u32 lo, hi;
	/* Neither earlier than the load of seq before it nor later than those behind it. */
	__asm__ volatile("lfence; rdtsc; lfence" : "=a"(lo), "=d"(hi) : : "memory");
	return (u64)hi << 32 | lo;
}

/* monotonic puts the clock's ns in *now and what REALTIME has more in *more. */
static int monotonic(u64 *now, u64 *more)
{
	for (int i = 0; i < TRIES; i++) {
		u32 seq = DATA->seq;
		if (seq & 1) {
			__asm__ volatile("pause");
			continue;
		}
		u64 tsc = counter(), since = tsc - DATA->tsc;
		if ((long)since < 0)
			since = 0; /* another processor's counter may be a few ticks behind */
		*now = DATA->base + (u64)(((unsigned __int128)since * DATA->mult) >> 32);
		*more = DATA->realtime;
		__asm__ volatile("" : : : "memory");
		if (DATA->seq == seq)
			return 1;
	}
	return 0;
}

int __vdso_clock_gettime(int id, struct timespec *ts)
{
	u64 now, more;
	switch (id) {
	case REALTIME: case MONOTONIC: case REALTIME_COARSE: case MONOTONIC_COARSE:
		if (monotonic(&now, &more))
			break;
		/* fall through */
	default:
		return call(SYS_clock_gettime, id, (long)ts, 0);
	}
	if (id == REALTIME || id == REALTIME_COARSE)
		now += more;
	ts->sec = now / SECOND;
	ts->nsec = now % SECOND;
	return 0;
}

int __vdso_clock_getres(int id, struct timespec *ts)
{
	return call(SYS_clock_getres, id, (long)ts, 0);
}

int __vdso_gettimeofday(struct timeval *tv, void *tz)
{
	u64 now, more;
	if (!monotonic(&now, &more))
		return call(SYS_gettimeofday, (long)tv, (long)tz, 0);
	now += more;
	if (tv) {
		tv->sec = now / SECOND;
		tv->usec = now % SECOND / 1000;
	}
	if (tz)
		*(u64 *)tz = 0;
	return 0;
}

long __vdso_time(long *t)
{
	u64 now, more;
	if (!monotonic(&now, &more))
		return call(SYS_time, (long)t, 0, 0);
	now = (now + more) / SECOND;
	if (t)
		*t = now;
	return now;
}

/* The processor's own way to tell (rdpid) is the host's business. */
long __vdso_getcpu(u32 *cpu, u32 *node, void *unused)
{
	return call(SYS_getcpu, (long)cpu, (long)node, (long)unused);
}
