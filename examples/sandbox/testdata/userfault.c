// Userfaultfd: a background copier serves the faults of a process and of its child,
// beside events of every kind, and every byte is compared. What it says is the same
// here and under Linux itself.
#include "guest.h"

enum { P = 4096, POLL = 7, IOCTL = 16, OPEN = 2, FCNTL = 72, FUTEX = 202, USERFAULTFD = 323, EPOLLCREATE1 = 291, EPOLLCTL = 233, EPOLLWAIT = 232,
	NONBLOCK = 04000, CLOEXEC = 02000000 };
#define API 0xc018aa3ful
#define REGISTER 0xc020aa00ul
#define UNREGISTER 0x8010aa01ul
#define WAKE 0x8010aa02ul
#define COPY 0xc028aa03ul
#define ZERO 0xc020aa04ul
#define MOVE 0xc028aa05ul
#define PROTECT 0xc018aa06ul
#define CONTINUE 0xc020aa07ul
#define POISON 0xc020aa08ul
enum { FORK_ = 2, REMAP_ = 4, REMOVE_ = 8, UNMAP_ = 64 };

static void show(const char *what, long v) { say(what); say(" "); sayNumber(v); say("\n"); }
#define SHOW(call) show(#call, call)

struct msg { unsigned char event, a; unsigned short b; u32 c; u64 arg[3]; };

static int open_(u64 features, int flags) {
	u64 api[3] = { 0xaa, features, 0 };
	int fd = CALL(USERFAULTFD, flags);
	WANT(fd >= 0);
	WANT(CALL(IOCTL, fd, API, api) == 0);
	return fd;
}
static long reg(int fd, char *p, u64 n, u64 mode) {
	u64 a[4] = { (u64)p, n * P, mode, 0 };
	return CALL(IOCTL, fd, REGISTER, a);
}
static char source[P] __attribute__((aligned(4096)));
static long copy(int fd, u64 at, const char *src, u64 n, u64 mode, long *done) {
	u64 a[5] = { at, (u64)src, n * P, mode, 0 };
	long r = CALL(IOCTL, fd, COPY, a);
	if (done) *done = (long)a[4] / P;
	return r;
}
static long onRange(int fd, u64 req, u64 at, u64 n, u64 mode) {
	u64 a[4] = { at, n * P, mode, 0 };
	return CALL(IOCTL, fd, req, a);
}

// what the byte at an offset of the memory is to be, in a generation.
static unsigned char byteAt(u64 off, int generation) { return (off >> 12) * 7 + (off & 4095) * 13 + generation * 101 + 1; }

// The copier: it knows where each page was at first, and whether it is to be zero.
// A fault is answered by what was there at first, or zero once it was removed.
enum { PAGES = 256, MOST = 4 };
struct range { u64 at, off, n; }; // n bytes that show the memory from off on
struct monitor { int fd; struct range r[64]; int n; unsigned char zero[PAGES]; };
static struct monitor m[MOST];
static volatile int monitors, quit, generation;
static volatile long faults, retries, forks, remaps, removes, unmaps;
static char page_[P] __attribute__((aligned(4096)));

static void cut(struct monitor *m, u64 start, u64 end) {
	int n = m->n;
	for (int i = 0; i < n; i++) {
		struct range r = m->r[i];
		u64 from = r.at > start ? r.at : start, to = r.at + r.n < end ? r.at + r.n : end;
		if (from >= to) continue;
		m->r[i].n = from - r.at;
		if (to < r.at + r.n) { WANT(m->n < 64); m->r[m->n++] = (struct range){ to, r.off + (to - r.at), r.at + r.n - to }; }
	}
}
static struct range *find(struct monitor *m, u64 at) {
	for (int i = 0; i < m->n; i++) if (m->r[i].at <= at && at - m->r[i].at < m->r[i].n) return &m->r[i];
	return 0;
}

static void handleMessage(struct monitor *m, struct msg *e);
static void drain(struct monitor *m) {
	struct msg e;
	while (CALL(READ, m->fd, &e, sizeof e) == sizeof e) handleMessage(m, &e);
}
static void serve(struct monitor *m, u64 at) {
	for (;;) {
		struct range *r = find(m, at);
		if (!r) { onRange(m->fd, WAKE, at, 1, 0); return; } // it has gone meanwhile
		u64 off = at - r->at + r->off;
		for (u64 i = 0; i < P; i++) page_[i] = m->zero[off / P] ? 0 : byteAt(off + i, generation);
		long done, err = copy(m->fd, at, page_, 1, 0, &done);
		if (err == 0 || err == -3) return; // or the process is gone
		if (err == -EEXIST) { onRange(m->fd, WAKE, at, 1, 0); return; }
		if (err != -EAGAIN && err != -2) { show("copy", err); CALL(EXITGROUP, 1); }
		retries++;
		drain(m);
		CALL(24);
		if (err == -2 && !find(m, at)) return;
	}
}
static void handleMessage(struct monitor *m, struct msg *e) {
	switch (e->event) {
	case 0x12: faults++; serve(m, e->arg[1] & -P); break;
	case 0x13: {
		forks++;
		WANT(monitors < MOST);
		struct monitor *c = m + 1; // of one process at a time
		*c = *m; c->fd = (u32)e->arg[0];
		monitors++;
		break;
	}
	case 0x14: {
		remaps++;
		struct range *r = find(m, e->arg[0]);
		if (!r) break;
		u64 off = e->arg[0] - r->at + r->off;
		cut(m, e->arg[1], e->arg[1] + e->arg[2]);
		WANT(m->n < 64);
		m->r[m->n++] = (struct range){ e->arg[1], off, e->arg[2] };
		break;
	}
	case 0x15:
		removes++;
		for (u64 at = e->arg[0]; at < e->arg[1]; at += P) {
			struct range *r = find(m, at);
			if (r) m->zero[(at - r->at + r->off) / P] = 1;
		}
		break;
	case 0x16: unmaps++; cut(m, e->arg[0], e->arg[1]); break;
	default: show("event", e->event); CALL(EXITGROUP, 1);
	}
}
struct pollfd { int fd; short events, revents; };
static void copier(void) {
	while (!quit) {
		struct pollfd f[MOST];
		int n = monitors;
		for (int i = 0; i < n; i++) f[i] = (struct pollfd){ m[i].fd, 1, 0 };
		CALL(POLL, f, n, 20);
		for (int i = 0; i < n; i++) if (f[i].revents & 1) drain(&m[i]);
	}
	quit = 2;
	CALL(EXIT, 0);
}
static char stack[65536] __attribute__((aligned(16)));
// thread runs fn in a thread of the process.
static void thread(void (*fn)(void)) {
	long ret;
	register long r10 __asm__("r10") = 0, r8 __asm__("r8") = 0;
	register void *r12 __asm__("r12") = (void *)fn;
	__asm__ volatile("syscall\ntest %%eax,%%eax\njnz 1f\nxor %%ebp,%%ebp\ncall *%%r12\nud2\n1:" : "=a"(ret)
		: "a"(CLONE), "D"(0x10f00 | 0x40000), "S"(stack + sizeof stack - 64), "d"(0), "r"(r10), "r"(r8), "r"(r12) : "rcx", "r11", "memory");
	(void)ret;
}

static void check(const char *what, char *p, u64 off, u64 n, int zero) {
	for (u64 i = 0; i < n; i++) {
		unsigned char want = zero ? 0 : byteAt(off + i, generation);
		if ((unsigned char)p[i] != want) { say(what); show(": wrong byte at", (off + i)); show("  it is", (unsigned char)p[i]); show("  and not", want); CALL(EXITGROUP, 1); }
	}
}

static char *map(u64 n, int flags) { char *p = (char *)CALL(MMAP, 0, n * P, 3, flags, -1, 0); WANT((u64)p % P == 0); return p; }

// family: events of all kinds beside the copier, and the same in a child.
static void life(char *p, const char *who, int depth) {
	say(who); say(" begins\n");
	check("first", p, 0, 16 * P, 0);
	char *q = map(32, 0x22);
	WANT(CALL(MREMAP, p + 16 * P, 16 * P, 16 * P, 3, q) == (long)q); // remap, and unmap of what was there
	check("moved", q, 16 * P, 8 * P, 0);
	WANT(CALL(MADVISE, p + 8 * P, 4 * P, 4) == 0);                   // remove
	check("removed", p + 8 * P, 8 * P, 4 * P, 1);
	check("beside", p + 12 * P, 12 * P, 4 * P, 0);
	WANT(CALL(MUNMAP, p + 40 * P, 8 * P) == 0);                      // unmap
	WANT(CALL(WRITE, 1, p + 41 * P, 1) == -EFAULT);
	int pipe[2];
	WANT(CALL(PIPE, pipe) == 0 && CALL(WRITE, pipe[1], p + 56 * P, P) == P);       // the kernel's own accesses
	WANT(CALL(READ, pipe[0], source, P) == P);
	for (int i = 0; i < P; i++) WANT((unsigned char)source[i] == byteAt(56 * P + i, generation));
	CALL(CLOSE, pipe[0]); CALL(CLOSE, pipe[1]);
	for (int i = 0; i < 8; i++) p[(64 + i) * P] = 99;                // writes
	for (int i = 0; i < 8; i++) { WANT(p[(64 + i) * P] == 99); check("written", p + (64 + i) * P + 1, (64 + i) * P + 1, P - 1, 0); }
	if (depth == 0) {
		long child = CALL(FORK);
		if (child == 0) {
			for (int i = 0; i < 8; i++) { WANT(p[(64 + i) * P] == 99); p[(64 + i) * P] = 11; }
			check("child", p + 72 * P, 72 * P, 8 * P, 0);            // not there yet when it was forked
			check("child", q + 8 * P, 24 * P, 8 * P, 0);             // where it was moved to
			check("child", p + 8 * P, 8 * P, 4 * P, 1);
			WANT(CALL(MADVISE, p + 80 * P, 4 * P, 4) == 0);
			check("child", p + 80 * P, 80 * P, 4 * P, 1);
			char *r = (char *)CALL(MREMAP, p + 96 * P, 8 * P, 8 * P, 3, q + 16 * P);
			WANT(r == q + 16 * P);
			check("child", r, 96 * P, 8 * P, 0);
			WANT(CALL(MUNMAP, p + 104 * P, P) == 0);
			check("child", p + 105 * P, 105 * P, 8 * P, 0);
			say("child is right\n");
			CALL(EXITGROUP, 7);
		}
		int status = 0;
		check("parent", p + 120 * P, 120 * P, 8 * P, 0);             // beside the child
		check("parent", p + 80 * P, 80 * P, 4 * P, 0);
		WANT(CALL(WAIT4, child, &status, 0, 0) == child);
		show("child's status", status);
		for (int i = 0; i < 8; i++) WANT(p[(64 + i) * P] == 99);
		check("parent", p + 96 * P, 96 * P, 16 * P, 0);
	}
	check("rest", p + 128 * P, 128 * P, 128 * P, 0);
}

static void family(void) {
	char *p = map(PAGES, 0x22);
	m[0].fd = open_(FORK_ | REMAP_ | REMOVE_ | UNMAP_, NONBLOCK | CLOEXEC);
	m[0].r[0] = (struct range){ (u64)p, 0, PAGES * P }; m[0].n = 1;
	WANT(reg(m[0].fd, p, PAGES, 1) == 0);
	monitors = 1;
	thread(copier);
	life(p, "parent", 0);
	quit = 1;
	while (quit != 2) CALL(24);
	SHOW(forks); SHOW(remaps); SHOW(removes); SHOW(unmaps); SHOW(faults > 100);
	for (int i = 0; i < monitors; i++) CALL(CLOSE, m[i].fd);
}

// calls: answers of the calls, one a line.
static void calls(void) {
	u64 api[3] = { 0xaa, 0, 0 }, bad[3] = { 0xab, 0, 5 };
	struct msg e[4];
	SHOW(CALL(USERFAULTFD, 2)); SHOW(CALL(USERFAULTFD, 0x100));
	int fd = CALL(USERFAULTFD, NONBLOCK | CLOEXEC | 1);
	char *p = map(16, 0x22), *s = map(16, 0x21);
	struct pollfd f = { fd, 1, 0 };
	SHOW(CALL(READ, fd, e, 32)); SHOW(CALL(POLL, &f, 1, 0)); SHOW(f.revents); SHOW(reg(fd, p, 1, 1)); SHOW(CALL(IOCTL, fd, 0x5401, 0));
	SHOW(CALL(IOCTL, fd, API, bad)); SHOW(bad[0]); bad[0] = 0xaa; bad[1] = 1ul << 40; SHOW(CALL(IOCTL, fd, API, bad)); SHOW(CALL(IOCTL, fd, API, 8));
	SHOW(CALL(IOCTL, fd, API, api)); SHOW(api[2] >> 60); SHOW(CALL(IOCTL, fd, API, api)); SHOW(api[0]);
	SHOW(CALL(POLL, &f, 1, 0)); SHOW(CALL(READ, fd, e, 32)); SHOW(CALL(READ, fd, e, 31)); SHOW(CALL(WRITE, fd, e, 32)); SHOW(CALL(IOCTL, fd, 0xc020aa0b, e));
	for (int mode = 0; mode < 9; mode++) { SHOW(reg(fd, p, 2, mode)); SHOW(reg(fd, s, 2, mode)); }
	SHOW(reg(fd, p, 16, 1)); SHOW(reg(fd, s, 16, 7)); SHOW(reg(fd, p + 1, 1, 1)); SHOW(reg(fd, 0, 1, 1)); SHOW(reg(fd, (char *)-P, 1, 1)); SHOW(CALL(IOCTL, fd, REGISTER, 8));
	long done = 0;
	for (int i = 0; i < P; i++) source[i] = i;
	SHOW(copy(fd, (u64)p, source, 1, 0, &done)); SHOW(done); SHOW(copy(fd, (u64)p, source, 1, 0, &done)); SHOW(copy(fd, (u64)p + P, (char *)8, 1, 0, &done));
	SHOW(copy(fd, (u64)p + P, source, 1, 2, &done)); SHOW(copy(fd, (u64)p + P, source, 1, 8, &done)); SHOW(copy(fd, 1ul << 46, source, 1, 0, &done)); SHOW(copy(fd, (u64)p + P, (char *)-P, 1, 0, &done));
	SHOW(CALL(IOCTL, fd, COPY, 8)); SHOW(onRange(fd, ZERO, (u64)p, 3, 0)); SHOW(onRange(fd, ZERO, (u64)p + P, 3, 0)); SHOW(onRange(fd, CONTINUE, (u64)s, 1, 0));
	SHOW(copy(fd, (u64)s, source, 1, 2, &done)); SHOW(onRange(fd, PROTECT, (u64)s, 16, 1)); SHOW(onRange(fd, PROTECT, (u64)s, 16, 3)); SHOW(onRange(fd, PROTECT, (u64)p, 1, 1)); SHOW(onRange(fd, PROTECT, (u64)s, 16, 0));
	SHOW(onRange(fd, POISON, (u64)p + 8 * P, 1, 0)); SHOW(CALL(WRITE, 1, p + 8 * P, 1)); SHOW(CALL(WRITE, 1, p + 9 * P, 1)); // of the kernel's faults it hears nothing
	u64 mv[5] = { (u64)p + 5 * P, (u64)p + P, 2 * P, 0, 0 };
	SHOW(CALL(IOCTL, fd, MOVE, mv)); SHOW(mv[4]); SHOW(CALL(IOCTL, fd, MOVE, mv)); SHOW((long)mv[4]); mv[3] = 4; SHOW(CALL(IOCTL, fd, MOVE, mv));
	SHOW(onRange(fd, UNREGISTER, (u64)p, 16, 0)); SHOW(onRange(fd, UNREGISTER, (u64)p, 1, 0)); SHOW(onRange(fd, UNREGISTER, 1ul << 46, 1, 0)); SHOW(p[9 * P]); SHOW(onRange(fd, WAKE, 1, 1, 0));
	// A child has the same descriptor, of its parent's memory.
	long child = CALL(FORK);
	if (child == 0) { SHOW(reg(fd, p + 12 * P, 1, 1)); SHOW(copy(fd, (u64)p + 12 * P, source, 1, 0, &done)); mv[0] = (u64)p + 13 * P; mv[3] = 0; SHOW(CALL(IOCTL, fd, MOVE, mv)); SHOW(p[12 * P + 5]); CALL(EXITGROUP, 0); }
	CALL(WAIT4, child, 0, 0, 0); SHOW(p[12 * P + 5]);
	CALL(CLOSE, fd);
	int ep = CALL(EPOLLCREATE1, 0);
	fd = open_(0, 0);
	f.fd = fd; SHOW(CALL(POLL, &f, 1, 0)); SHOW(f.revents); CALL(FCNTL, fd, 4, NONBLOCK); SHOW(CALL(POLL, &f, 1, 0));
	struct { u32 ev; u64 data; } __attribute__((packed)) ev = { 1, 0 };
	SHOW(CALL(EPOLLCTL, ep, 1, fd, &ev)); SHOW(CALL(EPOLLWAIT, ep, e, 4, 0));
	CALL(CLOSE, fd); SHOW(CALL(EPOLLWAIT, ep, e, 4, 0));
}

// signals: one that comes while its thread waits for a page is taken before the page.
static volatile int taken;
static int killFD; static char *killAt; static int killPipe[2];
static void onSignal(int sig) { (void)sig; taken++; }
static long mainThread;
static void killer(void) {
	struct msg e;
	struct pollfd f = { killFD, 1, 0 };
	CALL(POLL, &f, 1, -1); CALL(READ, killFD, &e, 32);
	CALL(TGKILL, pid(), mainThread, 10);
	while (!taken) CALL(24);
	CALL(POLL, &f, 1, -1); CALL(READ, killFD, &e, 32); // it asks again
	onRange(killFD, ZERO, (u64)killAt, 1, 0);
	quit = 3;
	CALL(EXIT, 0);
}
static void signals(void) {
	killFD = open_(1 << 8, NONBLOCK); killAt = map(1, 0x22); mainThread = tid();
	handle(10, onSignal, 0);
	WANT(reg(killFD, killAt, 1, 1) == 0);
	thread(killer);
	SHOW(*(volatile char *)killAt); SHOW(taken);
	while (quit != 3) CALL(24);
	CALL(CLOSE, killFD);
}

// deaths: who waits can be killed, whatever waits for whom.
static void deaths(void) {
	static char *p; int status; long child[4];
	struct { long is, iu, vs, vu; } soon = { 0, 0, 0, 300000 };
	for (int how = 0; how < 4; how++) {
		child[how] = CALL(FORK);
		if (child[how] == 0) {
			int fd = open_(how == 2 ? FORK_ : UNMAP_ | REMOVE_, NONBLOCK);
			p = map(4, 0x22);
			WANT(reg(fd, p, 4, 1) == 0);
			CALL(SETITIMER, 0, &soon, 0); // nobody ever answers
			switch (how) {
			case 0: *(volatile char *)p = 1; break;
			case 1: CALL(MUNMAP, p, P); break;
			case 2: CALL(FORK); break;
			case 3: CALL(PIPE, killPipe); CALL(WRITE, killPipe[1], p, 1); break;
			}
			CALL(EXITGROUP, 5);
		}
	}
	for (int how = 0; how < 4; how++) { SHOW(CALL(WAIT4, child[how], &status, 0, 0) == child[how]); SHOW(status); }
}

// wild: arguments at random. Whatever they are told, the program and its other memory
// go on.
static u64 seed;
static u64 dice(u64 n) { seed = seed * 6364136223846793005ul + 1442695040888963407ul; return (seed >> 33) % n; }
static void wild(char *arg) {
	seed = arg ? arg[0] : 1;
	char *p = map(64, 0x22), *s = map(16, 0x21), *own = map(1, 0x22);
	own[5] = 55;
	int fd[3] = { open_(0, NONBLOCK), open_(REMAP_ | 1 << 14 | 1 << 16, NONBLOCK | 1), CALL(USERFAULTFD, NONBLOCK) };
	static const u64 requests[] = { API, REGISTER, UNREGISTER, WAKE, COPY, ZERO, MOVE, PROTECT, CONTINUE, POISON, 0xc020aa0b, 0 };
	for (int i = 0; i < 20000; i++) {
		u64 at[] = { (u64)p, (u64)s, (u64)source, 0, -P, 1ul << 47, 1ul << 63, 4096, dice(1ul << 30) << 17 | dice(1 << 30) };
		u64 lengths[] = { P, 2 * P, 16 * P, 0, 1, -P, 1ul << 47, -1ul, dice(1 << 20) };
		u64 a[5];
		for (int k = 0; k < 5; k++) a[k] = dice(3) ? at[dice(9)] + dice(64) * P : lengths[dice(9)];
		a[1] = dice(2) ? lengths[dice(3)] : a[1]; a[2] = dice(2) ? dice(9) : a[2]; a[3] = dice(2) ? dice(9) : a[3];
		u64 req = requests[dice(12)];
		if (req == COPY || req == MOVE) { a[2] = lengths[dice(9)]; a[1] = dice(2) ? (u64)source : at[dice(9)]; if (a[1] >= (u64)p && a[1] < (u64)p + 64 * P) a[1] = (u64)source; if (a[1] >= (u64)s && a[1] < (u64)s + 16 * P) a[1] = (u64)source; }
		long r = CALL(IOCTL, fd[dice(3)], req, dice(50) ? (u64)a : at[dice(9)]);
		WANT(r <= 0 && r > -4096);
		if (dice(100) == 0) { CALL(MUNMAP, p + dice(64) * P, dice(4) * P); }
		if (dice(50) == 0) CALL(MMAP, p + dice(60) * P, 4 * P, 3, 0x32, -1, 0);
		struct msg e[3];
		if (dice(20) == 0) CALL(READ, fd[dice(3)], e, dice(97));
		WANT(own[5] == 55);
	}
}

int program(int argc, char **argv) {
	const char *mode = argc > 1 ? argv[1] : "";
	if (same(mode, "calls")) calls();
	else if (same(mode, "family")) family();
	else if (same(mode, "signals")) signals();
	else if (same(mode, "deaths")) deaths();
	else if (same(mode, "wild")) wild(argc > 2 ? argv[2] : 0);
	else return 2;
	say("right\n");
	return 0;
}
