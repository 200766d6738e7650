// rt_sigaction, which some hosts answer in ring 3 until the first clone: every
// result and every effect is that of the call.
#include "guest.h"

enum { USR1 = 10, USR2 = 12, ALRM = 14 };
static volatile int got;

static void count(int sig) { got += sig; }
static void other(int sig) { got += 100 * sig; }

static long store(int sig, void *handler, u64 flags, u64 mask) {
	struct action a = { handler, flags | 0x04000000, restore, mask };
	return CALL(SIGACTION, sig, &a, 0, 8);
}
static struct action load(int sig) {
	struct action a = { (void *)7, 7, (void *)7, 7 };
	WANT(CALL(SIGACTION, sig, 0, &a, 8) == 0);
	return a;
}
static int is(int sig, void *handler, u64 flags, u64 mask) {
	struct action a = load(sig);
	return a.handler == handler && (!handler || (a.flags == (flags | 0x04000000) && a.mask == mask));
}

// Each number has its own, and what is read is what was written, less what
// cannot be blocked.
static void table(void) {
	for (int sig = 1; sig <= 64; sig++) {
		if (sig == 9 || sig == 19) {
			WANT(store(sig, count, 0, 0) == -EINVAL && is(sig, 0, 0, 0));
			continue;
		}
		WANT(is(sig, 0, 0, 0));
		WANT(store(sig, (char *)count + sig, 0x10000000, ~0ul) == 0);
	}
	u64 blockable = ~(1ul << 8 | 1ul << 18);
	for (int sig = 1; sig <= 64; sig++)
		WANT(sig == 9 || sig == 19 || is(sig, (char *)count + sig, 0x10000000, blockable));
	for (int sig = 1; sig <= 64; sig++)
		WANT(sig == 9 || sig == 19 || (store(sig, 0, 0, 0) == 0 && is(sig, 0, 0, 0)));
	struct action a = { count, 0x04000000, restore, 5 }, old;
	WANT(CALL(SIGACTION, USR1, &a, &old, 8) == 0 && old.handler == 0 && is(USR1, count, 0, 5));
	a.handler = other;
	WANT(CALL(SIGACTION, USR1, &a, &a, 8) == 0 && a.handler == count && is(USR1, other, 0, 5));
}

static void refused(void) {
	struct action a = { count, 0x04000000, restore, 0 };
	WANT(CALL(SIGACTION, 0, &a, 0, 8) == -EINVAL && CALL(SIGACTION, 65, &a, 0, 8) == -EINVAL);
	WANT(CALL(SIGACTION, -1, &a, 0, 8) == -EINVAL && CALL(SIGACTION, USR1, &a, 0, 16) == -EINVAL);
	WANT(CALL(SIGACTION, USR1, 0, 0, 8) == 0);
	WANT(CALL(SIGACTION, USR1, 0x10, 0, 8) == -EFAULT && CALL(SIGACTION, USR1, 0, 0x10, 8) == -EFAULT);
	WANT(CALL(SIGACTION, USR1, 0xffff800000000000, 0, 8) == -EFAULT);
	char *p = (char *)CALL(MMAP, 0, 8192, 3, 0x22, -1, 0);
	WANT(CALL(MUNMAP, p + 4096, 4096) == 0);
	WANT(store(USR1, other, 0, 3) == 0);
	struct action *edge = (struct action *)(p + 4096 - 16); // half of it is there
	edge->handler = count, edge->flags = 0x44000000;
	WANT(CALL(SIGACTION, USR1, edge, 0, 8) == -EFAULT && is(USR1, other, 0, 3));
	WANT(CALL(SIGACTION, USR1, 0, edge, 8) == -EFAULT && is(USR1, other, 0, 3));
	got = 0;
	WANT(CALL(KILL, pid(), USR1) == 0 && got == 100 * USR1);
	WANT(CALL(MPROTECT, p, 4096, 1) == 0);
	WANT(CALL(SIGACTION, USR1, 0, p, 8) == -EFAULT && CALL(SIGACTION, USR1, p, 0, 8) == 0);
}

static void effects(void) {
	u64 usr1 = 1ul << (USR1 - 1), none = 0;
	got = 0;
	WANT(store(USR1, count, 0, 0) == 0 && CALL(KILL, pid(), USR1) == 0 && got == USR1);
	WANT(store(USR1, other, 0, 0) == 0 && CALL(KILL, pid(), USR1) == 0 && got == 101 * USR1);
	// To be ignored even for a moment drops what is pending.
	WANT(CALL(SIGPROCMASK, 0, &usr1, 0, 8) == 0 && CALL(KILL, pid(), USR1) == 0);
	WANT(store(USR1, (void *)1, 0, 0) == 0 && store(USR1, count, 0, 0) == 0);
	got = 0;
	WANT(CALL(SIGPROCMASK, 2, &none, 0, 8) == 0 && got == 0);
	// A handler for once.
	WANT(store(USR1, count, 0x80000000, 0) == 0 && CALL(KILL, pid(), USR1) == 0 && got == USR1 && is(USR1, 0, 0, 0));
	WANT(store(USR1, count, 0, 0) == 0 && is(USR1, count, 0, 0));
	// A signal from without reaches the handler that ring 3 has just stored, and
	// before that none: it is ignored.
	struct { long is, iu, vs, vu; } often = { 0, 20000, 0, 20000 }, off = { 0, 0, 0, 0 };
	got = 0;
	WANT(store(ALRM, (void *)1, 0, 0) == 0 && CALL(SETITIMER, 0, &often, 0) == 0 && store(ALRM, count, 0, 0) == 0);
	while (!got) ;
	WANT(CALL(SETITIMER, 0, &off, 0) == 0 && got % ALRM == 0);
}

// Handlers that run between any two instructions see and leave a whole table.
static void storer(int sig) { got++; WANT(store(USR2, got & 1 ? (void *)count : (void *)other, 0, got & 1 ? 5 : 6) == 0); (void)sig; }
static void storm(void) {
	struct { long is, iu, vs, vu; } often = { 0, 200, 0, 200 }, off = { 0, 0, 0, 0 };
	got = 0;
	WANT(store(USR2, other, 0, 6) == 0 && store(ALRM, storer, 0, 0) == 0 && CALL(SETITIMER, 0, &often, 0) == 0);
	for (u64 i = 0; got < 1000; i++) {
		WANT(store(USR1, (char *)count + i % 1000, 0, i << 20) == 0);
		struct action a = load(USR1), b = load(USR2);
		WANT(a.handler == (char *)count + i % 1000 && a.mask == i << 20);
		WANT((b.handler == count && b.mask == 5) || (b.handler == other && b.mask == 6));
	}
	WANT(CALL(SETITIMER, 0, &off, 0) == 0 && store(ALRM, 0, 0, 0) == 0);
}

// Children and what they become.
static void family(char *self) {
	int status = 0;
	WANT(store(USR1, count, 0, 0) == 0 && store(USR2, (void *)1, 0, 0) == 0);
	if (CALL(FORK) == 0) {
		WANT(is(USR1, count, 0, 0) && load(USR2).handler == (void *)1);
		WANT(store(USR1, other, 0, 9) == 0 && is(USR1, other, 0, 9));
		char *argv[] = { self, "again", 0 };
		CALL(EXECVE, self, argv, 0);
		CALL(EXIT, 9);
	}
	WANT(CALL(WAIT4, -1, &status, 0, 0) > 0 && status == 0x500);
	WANT(is(USR1, count, 0, 0));
	got = 0;
	long child = CALL(VFORK);
	if (child == 0) { // shares the memory, and not the actions
		store(USR1, other, 0, 3);
		CALL(EXIT, 4);
	}
	WANT(CALL(WAIT4, child, &status, 0, 0) == child && status == 0x400 && is(USR1, count, 0, 0));
	WANT(CALL(KILL, pid(), USR1) == 0 && got == USR1);
	WANT(store(17, (void *)1, 0, 0) == 0);
	child = CALL(FORK);
	if (child == 0) CALL(EXIT, 3);
	WANT(CALL(WAIT4, child, &status, 0, 0) == -ECHILD);
}

int program(int argc, char **argv) {
	if (argc > 1 && same(argv[1], "many")) {
		for (u64 i = 0; i < 2000; i++) WANT(store(USR1, (char *)count + i, 0, i << 20) == 0 && is(USR1, (char *)count + i, 0, (u64)i << 20));
		say("many\n");
		return 0;
	}
	if (argc > 1 && same(argv[1], "unmap")) { // the calls go on without what answers them
		CALL(MUNMAP, 0x7f7fffffe000, 8192);
		WANT(store(USR1, count, 0, 3) == 0 && is(USR1, count, 0, 3) && pid() > 0);
		WANT(CALL(KILL, pid(), USR1) == 0 && got == USR1);
		say("unmapped\n");
		return 0;
	}
	if (argc > 1) { // after exec: what was ignored still is
		WANT(is(USR1, 0, 0, 0) && load(USR2).handler == (void *)1);
		WANT(store(USR2, count, 0, 1) == 0 && is(USR2, count, 0, 1));
		return 5;
	}
	table();
	refused();
	effects();
	storm();
	family(argv[0]);
	say("actions are right\n");
	return 0;
}
