// Clocks by the vDSO and by system calls. Without an argument it alternates the
// two and wants time never to go back; "calls N" reads N times by the vDSO alone;
// "processes" has several processes pass one clock around; "protect" tries to
// change the data page. "no vDSO" if there is none.
#include "guest.h"

enum { GETTIME = 228, GETTIMEOFDAY = 96, TIME = 201, PIPE2 = 293, SCHEDYIELD = 24 };
enum { REALTIME, MONOTONIC, CPUTIME, BOOTTIME = 7 };
struct stamp { long sec, nsec; };

struct header { char ident[16]; short type, machine; u32 version; u64 entry, phoff, shoff; u32 flags; short ehsize, phentsize, phnum; };
struct segment { u32 type, flags; u64 offset, vaddr, paddr, filesz, memsz, align; };
struct symbol { u32 name; char info, other; short section; u64 value, size; };

// find looks a name up as C libraries do: by way of PT_DYNAMIC.
static void *find(char *base, const char *name) {
	struct header *h = (void *)base;
	struct segment *s = (void *)(base + h->phoff);
	u64 *dyn = 0, strings = 0, symbols = 0, hash = 0;
	for (int i = 0; i < h->phnum; i++)
		if (s[i].type == 2) dyn = (u64 *)(base + s[i].offset);
	for (; dyn && *dyn; dyn += 2) {
		if (*dyn == 4) hash = dyn[1];
		if (*dyn == 5) strings = dyn[1];
		if (*dyn == 6) symbols = dyn[1];
	}
	u32 n = ((u32 *)(base + hash))[1];
	for (u32 i = 0; i < n; i++) {
		struct symbol *y = (struct symbol *)(base + symbols) + i;
		if (same(base + strings + y->name, name)) return base + y->value;
	}
	return 0;
}

static int (*gettime)(int, struct stamp *);
static u64 byVDSO(int id) { struct stamp t = { 0 }; WANT(gettime(id, &t) == 0); return t.sec * 1000000000ul + t.nsec; }
static u64 byCall(int id) { struct stamp t = { 0 }; WANT(CALL(GETTIME, id, &t) == 0); return t.sec * 1000000000ul + t.nsec; }

static void alternate(int id, int rounds) {
	u64 last = 0;
	for (int i = 0; i < rounds; i++) {
		u64 now = i & 1 ? byCall(id) : byVDSO(id);
		if (now < last) { say("back by "); sayNumber(last - now); say(" ns in round "); sayNumber(i); say("\n"); CALL(EXITGROUP, 1); }
		last = now;
	}
}

// processes: each waits for the last reading of the one before it.
static void processes(void) {
	enum { N = 4, ROUNDS = 200 };
	int ring[N][2], status;
	for (int i = 0; i < N; i++) CALL(PIPE2, ring[i], 0);
	for (int i = 0; i < N; i++) {
		if (CALL(FORK) != 0) continue;
		for (int r = 0; r < ROUNDS; r++) {
			u64 before, now;
			WANT(CALL(READ, ring[i][0], &before, 8) == 8);
			now = r & 1 ? byVDSO(MONOTONIC) : byCall(MONOTONIC);
			WANT(now >= before);
			CALL(WRITE, ring[(i + 1) % N][1], &now, 8);
		}
		CALL(EXITGROUP, 0);
	}
	u64 zero = 0;
	CALL(WRITE, ring[0][1], &zero, 8);
	for (int i = 0; i < N; i++) { CALL(WAIT4, -1, &status, 0, 0); WANT(status == 0); }
}

static long number(const char *s) { long n = 0; while (*s) n = n * 10 + *s++ - '0'; return n; }

int program(int argc, char **argv) {
	char **p = argv + argc + 1;
	while (*p++);
	u64 *aux = (u64 *)p;
	while (*aux && *aux != 33) aux += 2;
	if (!*aux) { say("no vDSO\n"); return 0; }
	char *base = (char *)aux[1];
	gettime = find(base, "__vdso_clock_gettime");
	int (*timeofday)(struct stamp *, void *) = find(base, "__vdso_gettimeofday");
	long (*time)(long *) = find(base, "__vdso_time");
	long (*getcpu)(u32 *, u32 *, void *) = find(base, "__vdso_getcpu");
	WANT(gettime && timeofday && time && getcpu);
	if (argc > 2 && same(argv[1], "calls")) {
		u64 last = 0;
		for (long n = number(argv[2]); n > 0; n--) {
			u64 now = byVDSO(n & 1 ? MONOTONIC : 6);
			WANT(now >= last);
			last = now;
		}
		say("read\n");
		return 0;
	}
	if (argc > 1 && same(argv[1], "protect")) {
		WANT(CALL(MPROTECT, base - 4096, 4096, 3) == -13);
		WANT(CALL(MPROTECT, base - 8192, 16384, 3) < 0);
		WANT(CALL(READ, 0, base - 4096, 8) <= 0);
		WANT(CALL(MPROTECT, base - 4096, 4096, 1) == 0);
		WANT(CALL(MPROTECT, base, 4096, 7) == 0);
		base[4000] = 1; // a copy of its own
		WANT(CALL(MUNMAP, base - 4096, 8192) == 0);
		say("protected\n");
		return 0;
	}
	if (argc > 1 && same(argv[1], "processes")) { processes(); say("passed on\n"); return 0; }
	alternate(MONOTONIC, 50000);
	alternate(REALTIME, 10000);
	struct stamp t; long s; u32 cpu = 77;
	u64 now = byVDSO(REALTIME);
	WANT(timeofday(&t, 0) == 0); WANT(t.sec * 1000000000ul + t.nsec * 1000 + 1000 >= now);
	WANT(time(&s) == s); WANT(s >= (long)(now / 1000000000));
	WANT(getcpu(&cpu, 0, 0) == 0); WANT(cpu < 64);
	WANT(gettime(CPUTIME, &t) == 0); WANT(gettime(BOOTTIME, &t) == 0); WANT(gettime(99, &t) == -EINVAL); WANT(gettime(-1, &t) == -EINVAL || gettime(-1, &t) == 0);
	// Against the host's own clock: what it says over a sleep of 50 ms.
	static struct stamp nap = { 0, 50000000 };
	u64 before = byVDSO(MONOTONIC);
	CALL(NANOSLEEP, &nap, 0);
	u64 took = byVDSO(MONOTONIC) - before;
	WANT(took >= 49900000 && took < 600000000000);
	say("clocks are right\n");
	return 0;
}
