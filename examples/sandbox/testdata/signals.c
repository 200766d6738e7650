// Signals: frames, masks, alternate stack, vector state, restarts.
#include "guest.h"

static volatile int got, code, onAlt;
static volatile u64 where;
static char alt[16384];

static void count(int sig, struct info *i, void *uc) { (void)uc; got += sig; code = i->code; }

static int told[2];
static void tell(int sig, struct info *i, void *uc) { count(sig, i, uc); CALL(WRITE, told[1], "t", 1); }

// skip steps over the faulting instruction "mov %eax,(%rdx)": 2 bytes.
static void skip(int sig, struct info *i, u64 *uc) {
	char here;
	got = sig, code = i->code, where = i->addr;
	onAlt = &here >= alt && &here < alt + sizeof alt;
	uc[5 + 16] += 2; // RIP in the sigcontext
	__asm__ volatile("pxor %xmm7,%xmm7\nfld1\n");
}

static void poke(u64 at) { __asm__ volatile("mov %%eax,(%%rdx)" :: "a"(1), "d"(at)); }

static void faults(void) {
	WANT(handle(11, skip, 0) == 0);
	u64 pattern[2] = { 0x1122334455667788, 0x99aabbccddeeff00 }, back[2] = { 0, 0 };
	__asm__ volatile("movdqu %0,%%xmm7" :: "m"(pattern));
	__asm__ volatile("mov %%eax,(%%rdx)" :: "a"(1), "d"(0x40UL) : "memory");
	__asm__ volatile("movdqu %%xmm7,%0" : "=m"(back));
	WANT(got == 11 && code == 1 /* MAPERR */ && where == 0x40 && !onAlt);
	WANT(back[0] == pattern[0] && back[1] == pattern[1]);
	poke((u64)program);
	WANT(code == 2 /* ACCERR */ && where == (u64)program);
	struct { void *sp; int flags; u64 size; } ss = { alt, 0, sizeof alt }, old;
	WANT(CALL(SIGALTSTACK, &ss, 0) == 0);
	WANT(handle(11, skip, 0x08000000) == 0);
	poke(0x80);
	WANT(onAlt && where == 0x80);
	WANT(CALL(SIGALTSTACK, 0, &old) == 0 && old.sp == alt && old.flags == 0);
}

static void masks(void) {
	u64 usr1 = 1 << 9, none = 0, was = 7;
	WANT(handle(10, count, 0) == 0);
	got = 0;
	WANT(CALL(SIGPROCMASK, 0, &usr1, &was, 8) == 0 && was == 0);
	WANT(CALL(KILL, pid(), 10) == 0);
	WANT(got == 0);
	u64 pending = 0;
	WANT(CALL(127, &pending, 8) == 0 && pending == usr1);
	WANT(CALL(SIGSUSPEND, &none, 8) == -EINTR && got == 10 && code == 0);
	WANT(CALL(SIGPROCMASK, 2, &none, &was, 8) == 0 && was == usr1);
	got = 0;
	WANT(CALL(TGKILL, pid(), tid(), 10) == 0 && got == 10 && code == -6);
	WANT(CALL(SIGPROCMASK, 0, &usr1, 0, 8) == 0);
	WANT(CALL(KILL, pid(), 10) == 0);
	struct info i;
	struct { long s, n; } ts = { 1, 0 };
	got = 0;
	WANT(CALL(SIGTIMEDWAIT, &usr1, &i, &ts, 8) == 10 && i.sig == 10 && got == 0);
	ts.s = 0, ts.n = 1000000;
	WANT(CALL(SIGTIMEDWAIT, &usr1, &i, &ts, 8) == -EAGAIN);
	WANT(CALL(SIGPROCMASK, 2, &none, 0, 8) == 0);
	WANT(CALL(SIGACTION, 9, &i, 0, 8) == -EINVAL && CALL(SIGACTION, 65, 0, 0, 8) == -EINVAL);
	WANT(CALL(SIGACTION, 10, 8, 0, 8) == -EFAULT && CALL(SIGACTION, 10, 0, 0, 4) == -EINVAL);
}

static void restarts(void) {
	int fd[2];
	char c;
	WANT(CALL(PIPE, fd) == 0);
	// Again and again, since nobody knows when the read has begun.
	struct { long is, iu, vs, vu; } often = { 0, 20000, 0, 20000 }, off = { 0, 0, 0, 0 };
	got = 0;
	WANT(handle(14, count, 0) == 0);
	WANT(CALL(SETITIMER, 0, &often, 0) == 0);
	WANT(CALL(READ, fd[0], &c, 1) == -EINTR && got > 0 && got % 14 == 0 && code == 0x80);
	WANT(CALL(SETITIMER, 0, &off, 0) == 0);
	// With SA_RESTART the read goes on, until the child has written: it has been told
	// of four signals by then.
	WANT(handle(14, tell, 0x10000000) == 0 && CALL(PIPE, told) == 0);
	got = 0;
	long child = CALL(FORK);
	if (child == 0) {
		for (int i = 0; i < 4; i++) WANT(CALL(READ, told[0], &c, 1) == 1);
		CALL(WRITE, fd[1], "x", 1);
		CALL(EXIT, 5);
	}
	WANT(CALL(SETITIMER, 0, &often, 0) == 0);
	WANT(CALL(READ, fd[0], &c, 1) == 1 && c == 'x' && got >= 4 * 14 && got % 14 == 0);
	WANT(CALL(SETITIMER, 0, &off, 0) == 0);
	int status = 0;
	WANT(CALL(WAIT4, child, &status, 0, 0) == child && status == 0x500);
	WANT(CALL(WAIT4, -1, &status, 0, 0) == -ECHILD);
	// A reader that is gone: EPIPE once the signal is ignored.
	WANT(CALL(CLOSE, fd[0]) == 0);
	struct action ignore = { (void *)1, 0x04000000, restore, 0 };
	WANT(CALL(SIGACTION, 13, &ignore, 0, 8) == 0);
	WANT(CALL(WRITE, fd[1], "x", 1) == -32);
}

static void children(void) {
	int status = 0;
	long child = CALL(FORK);
	if (child == 0) for (;;) CALL(PAUSE);
	WANT(CALL(KILL, child, 19) == 0);
	WANT(CALL(WAIT4, child, &status, 2, 0) == child && status == 0x137f);
	WANT(CALL(KILL, child, 18) == 0);
	WANT(CALL(WAIT4, child, &status, 8, 0) == child && status == 0xffff);
	WANT(CALL(WAIT4, child, &status, 1, 0) == 0);
	WANT(CALL(KILL, child, 15) == 0);
	struct info i;
	WANT(CALL(WAITID, 1, child, &i, 4, 0) == 0 && i.sig == 17 && i.code == 2);
	WANT(CALL(KILL, child, 15) == -3);
	struct action ignore = { (void *)1, 0x04000000, restore, 0 };
	WANT(CALL(SIGACTION, 17, &ignore, 0, 8) == 0);
	child = CALL(FORK);
	if (child == 0) CALL(EXIT, 3);
	WANT(CALL(WAIT4, child, &status, 0, 0) == -ECHILD); // it reaps itself
}

// A handler that runs between any two instructions and around any call changes
// nothing that the program can see.
static void storm(void) {
	struct { long is, iu, vs, vu; } often = { 0, 300, 0, 300 }, off = { 0, 0, 0, 0 };
	long me = pid();
	WANT(handle(14, count, 0) == 0);
	got = 0;
	WANT(CALL(SETITIMER, 0, &often, 0) == 0);
	for (int i = 0; got < 14 * 300; i++) {
		u64 a = i, b = ~i, x[2] = { i, i * 3ul }, y[2];
		WANT(pid() == me);
		__asm__ volatile(
			"movdqu %2,%%xmm9\nmov %0,%%rcx\nmov %1,%%r11\nmov $300,%%eax\n"
			"1: dec %%eax\njnz 1b\nmov %%rcx,%0\nmov %%r11,%1\nmovdqu %%xmm9,%3"
			: "+r"(a), "+r"(b), "+m"(x), "=m"(y) :: "rax", "rcx", "r11", "xmm9");
		WANT(a == (u64)i && b == (u64)~i && y[0] == x[0] && y[1] == x[1]);
	}
	WANT(CALL(SETITIMER, 0, &off, 0) == 0);
}

int program(int argc, char **argv) {
	(void)argc, (void)argv;
	faults();
	masks();
	restarts();
	children();
	storm();
	say("signals are right\n");
	return 0;
}
