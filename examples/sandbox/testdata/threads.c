// Threads made by clone(2) itself, and what becomes of them: one mode for each
// way in which they can get into each other's way.
#include "guest.h"

enum { FUTEX = 202, SETAFFINITY = 203, GETAFFINITY = 204, SETROBUST = 273, GETROBUST = 274, MEMBARRIER = 324, YIELD = 24, SETTIDADDRESS = 218, CLONE3 = 435, RSEQ = 334 };
enum { ETIMEDOUT = 110, ENOSYS = 38, ESRCH = 3, EPERM = 1 };
enum { PRIVATE = 128, WAIT = 0, WAKE = 1, REQUEUE = 3, CMPREQUEUE = 4, WAKEOP = 5, WAITBITSET = 9, WAKEBITSET = 10, REALTIME = 256 };
enum { RW = 3, ANON = 0x22, SHAREDANON = 0x21 };

#define VM 0x100
#define FS 0x200
#define FILES 0x400
#define SIGHAND 0x800
#define THREAD 0x10000
#define SYSVSEM 0x40000
#define SETTLS 0x80000
#define PARENT_SETTID 0x100000
#define CHILD_CLEARTID 0x200000
#define CHILD_SETTID 0x1000000
#define PTHREAD (VM|FS|FILES|SIGHAND|THREAD|SYSVSEM|PARENT_SETTID|CHILD_CLEARTID)

typedef struct { long s, n; } timespec;
typedef void (*entry)(long);

static long map(u64 size, int flags) { return CALL(MMAP, 0, size, RW, flags, -1, 0); }
static long futex(volatile u32 *w, int op, u32 v, const void *t, volatile u32 *w2, u32 v3) { return CALL(FUTEX, w, op, v, t, w2, v3); }
static void sleepMs(long ms) { timespec ts = { ms / 1000, ms % 1000 * 1000000 }; CALL(NANOSLEEP, &ts, 0); }
static u32 load(volatile u32 *w) { return __atomic_load_n(w, __ATOMIC_SEQ_CST); }
static u32 add(volatile u32 *w, u32 n) { return __atomic_add_fetch(w, n, __ATOMIC_SEQ_CST); }

// rawClone starts fn(arg) on a stack of its own.
long rawClone(u64 flags, long stack, void *ptid, volatile void *ctid, void *tls, entry fn, long arg);
__asm__(
	".globl rawClone\nrawClone:\n"
	"mov 8(%rsp),%rax\nmov %rax,-8(%rsi)\nmov %r9,-16(%rsi)\nsub $16,%rsi\n"
	"mov %rcx,%r10\nmov $56,%eax\nsyscall\n"
	"test %rax,%rax\njz 1f\nret\n"
	"1: xor %ebp,%ebp\npop %rax\npop %rdi\nand $-16,%rsp\ncall *%rax\nmov $60,%eax\nxor %edi,%edi\nsyscall\nhlt\n");

#define STACK 262144
static long newStack(void) { long s = map(STACK, ANON); WANT(s > 0); return s + STACK; }

static long spawn(u64 flags, volatile u32 *ctid, entry fn, long arg) {
	u32 ptid = 0;
	*ctid = 1;
	long t = rawClone(flags, newStack(), &ptid, ctid, 0, fn, arg);
	WANT(t < 0 || ptid == (u32)t);
	return t;
}
static long thread(volatile u32 *ctid, entry fn, long arg) {
	long t = spawn(PTHREAD, ctid, fn, arg);
	WANT(t > 0);
	return t;
}
static void join(volatile u32 *ctid) {
	u32 v;
	while ((v = load(ctid)) != 0) {
		long r = futex(ctid, WAIT, v, 0, 0, 0);
		WANT(r == 0 || r == -EAGAIN || r == -EINTR);
	}
}

static volatile u32 word, word2, count, ready, stop, tids[64];
static volatile long result;

static void waitFor(volatile u32 *w, u32 n) { while (load(w) < n) CALL(YIELD); }
// settle gives what is not to happen time to happen all the same.
static void settle(void) { sleepMs(20); }
// sleepers waits until n threads sleep on a word: moved to where they are, they are
// counted, and nothing comes of it.
static void sleepers(volatile u32 *w, long n) { while (futex(w, REQUEUE | PRIVATE, 0, (void *)1000, w, 0) != n) CALL(YIELD); }

// --- clone

static void countUp(long n) { for (long i = 0; i < n; i++) add(&count, 1); }
static void childOfVM(long x) { word = x; CALL(EXITGROUP, 7); }

static void cloneCalls(void) {
	int status = 0;
	for (int i = 0; i < 16; i++) thread(&tids[i], countUp, 1000);
	for (int i = 0; i < 16; i++) join(&tids[i]);
	WANT(count == 16000);
	WANT(CALL(CLONE, THREAD, 0, 0, 0, 0) == -EINVAL && CALL(CLONE, THREAD | SIGHAND, 0, 0, 0, 0) == -EINVAL && CALL(CLONE, SIGHAND, 0, 0, 0, 0) == -EINVAL);
	// A process in the same memory, beside its parent.
	long child = rawClone(VM | 17, newStack(), 0, 0, 0, childOfVM, 5);
	WANT(child > 0 && CALL(WAIT4, child, &status, 0, 0) == child && status == 0x700 && word == 5);
	// One that sends no signal is not waited for without __WALL.
	child = rawClone(VM, newStack(), 0, 0, 0, childOfVM, 6);
	WANT(CALL(WAIT4, child, &status, 0, 0) == -ECHILD);
	WANT(CALL(WAIT4, child, &status, 0x40000000, 0) == child && word == 6);
	word = 0;
	u64 cpus = 0, one = 1, none = 0;
	WANT(CALL(GETAFFINITY, 0, 8, &cpus) == 8 && cpus != 0);
	WANT(CALL(SETAFFINITY, 0, 8, &one) == 0 && CALL(GETAFFINITY, 0, 8, &none) == 8 && none == 1);
	none = 0;
	WANT(CALL(SETAFFINITY, 0, 8, &none) == -EINVAL && CALL(SETAFFINITY, 0, 8, &cpus) == 0);
	WANT(CALL(SETAFFINITY, 0x7ffffffe, 8, &cpus) == -ESRCH && CALL(GETAFFINITY, 0, 4, &cpus) == -EINVAL);
	WANT(CALL(MEMBARRIER, 16, 0, 0) == 0 && CALL(MEMBARRIER, 8, 0, 0) == 0 && CALL(MEMBARRIER, 1 << 20, 0, 0) == -EINVAL);
}

// --- futex

static void waits(long bits) {
	add(&ready, 1);
	long r = futex(&word, WAITBITSET | PRIVATE, 0, 0, 0, bits);
	WANT(r == 0);
	add(&count, 1);
}
static void waitsTimed(long ms) {
	timespec ts = { 0, ms * 1000000 };
	result = futex(&word, WAIT | PRIVATE, 0, &ts, 0, 0);
	add(&ready, 1);
}
static void waiters(int n, long bits) {
	word = count = ready = 0;
	for (int i = 0; i < n; i++) thread(&tids[i], waits, bits ? bits : 1l << i);
	waitFor(&ready, n);
	sleepers(&word, n);
}
static void joinAll(int n) { for (int i = 0; i < n; i++) join(&tids[i]); }

static void futexCalls(void) {
	WANT(futex(&word, WAIT | PRIVATE, 1, 0, 0, 0) == -EAGAIN);
	WANT(futex((void *)0x1000, WAIT | PRIVATE, 1, 0, 0, 0) == -EFAULT && futex((void *)0x1000, WAIT, 1, 0, 0, 0) == -EFAULT);
	WANT(futex((void *)((long)&word + 1), WAIT, 0, 0, 0, 0) == -EINVAL && futex(&word, WAITBITSET, 0, 0, 0, 0) == -EINVAL);
	WANT(futex((void *)-4096, WAKE, 1, 0, 0, 0) == -EFAULT && futex(&word, 99, 0, 0, 0, 0) == -ENOSYS);
	timespec bad = { 0, 1000000000 }, past = { 1, 0 }, neg = { -1, 0 };
	WANT(futex(&word, WAIT, 0, &bad, 0, 0) == -EINVAL && futex(&word, WAIT, 0, &neg, 0, 0) == -EINVAL && futex(&word, WAIT, 0, (void *)8, 0, 0) == -EFAULT);
	WANT(futex(&word, WAITBITSET | REALTIME, 0, &past, 0, -1) == -ETIMEDOUT && futex(&word, WAITBITSET, 0, &past, 0, -1) == -ETIMEDOUT);
	WANT(futex(&word, WAIT | REALTIME, 0, &past, 0, 0) == -ENOSYS);
	WANT(futex(&word, WAKE | PRIVATE, 1, 0, 0, 0) == 0);

	waiters(4, 0xff);
	WANT(futex(&word, WAKE | PRIVATE, 2, 0, 0, 0) == 2);
	waitFor(&count, 2);
	settle();
	WANT(count == 2 && futex(&word, WAKE | PRIVATE, 100, 0, 0, 0) == 2);
	joinAll(4);
	WANT(count == 4);

	waiters(4, 0);
	WANT(futex(&word, WAKEBITSET | PRIVATE, 9, 0, 0, 0x5) == 2 && futex(&word, WAKEBITSET | PRIVATE, 9, 0, 0, 0x5) == 0);
	WANT(futex(&word, WAKEBITSET | PRIVATE, 9, 0, 0, 0xff) == 2);
	joinAll(4);

	waiters(6, -1);
	WANT(futex(&word, CMPREQUEUE | PRIVATE, 1, (void *)2, &word2, 1) == -EAGAIN);
	WANT(futex(&word, CMPREQUEUE | PRIVATE, 1, (void *)2, &word2, 0) == 3);
	WANT(futex(&word2, WAKE | PRIVATE, 9, 0, 0, 0) == 2);
	WANT(futex(&word, REQUEUE | PRIVATE, 1, (void *)9, &word2, 0) == 3);
	WANT(futex(&word, WAKE | PRIVATE, 9, 0, 0, 0) == 0 && futex(&word2, WAKE | PRIVATE, 9, 0, 0, 0) == 2);
	joinAll(6);
	WANT(futex(&word, REQUEUE | PRIVATE, -1, 0, &word2, 0) == -EINVAL && futex(&word, REQUEUE | PRIVATE, 0, 0, (void *)1, 0) == -EINVAL);

	waiters(3, -1);
	word2 = 5; // add 3 to word2; wake on word; wake on word2 if it was > 4
	WANT(futex(&word, WAKEOP | PRIVATE, 1, (void *)1, &word2, 1u << 28 | 4u << 24 | 3 << 12 | 4) == 1 && word2 == 8);
	WANT(futex(&word2, WAKEOP | PRIVATE, 1, (void *)9, &word, 0u << 28 | 0u << 24 | 7 << 12 | 0) == 2 && word == 7);
	joinAll(3);
	WANT(futex(&word, WAKEOP, 1, 0, &word2, 7u << 28) == -ENOSYS);

	word = ready = 0;
	thread(&tids[0], waitsTimed, 30);
	join(&tids[0]);
	WANT(result == -ETIMEDOUT);

	// Memory that two processes share is one word wherever it is.
	volatile u32 *volatile s = (void *)map(8192, SHAREDANON);
	int status;
	long child = CALL(FORK);
	if (child == 0) {
		long moved = CALL(MREMAP, s, 8192, 8192, 3, 0x10000000); // not in the sandbox
		if (moved > 0) s = (void *)moved;
		while (futex(s + 1024, WAIT, 0, 0, 0, 0) != 0) {}
		CALL(EXIT, 4);
	}
	while (futex(s + 1024, WAKE, 1, 0, 0, 0) == 0) CALL(YIELD);
	WANT(CALL(WAIT4, child, &status, 0, 0) == child && status == 0x400);

	// A word that is unmapped under its waiters: they sleep on, and can be woken.
	long page = map(4096, ANON);
	volatile u32 *w = (void *)page;
	*w = 0;
	ready = 0;
	void onPage(long at) { add(&ready, 1); WANT(futex((void *)at, WAIT | PRIVATE, 0, 0, 0, 0) == 0); }
	for (int i = 0; i < 3; i++) thread(&tids[i], onPage, page);
	waitFor(&ready, 3);
	sleepers(w, 3);
	WANT(CALL(MUNMAP, page, 4096) == 0);
	WANT(futex((void *)page, WAIT | PRIVATE, 0, 0, 0, 0) == -EFAULT);
	WANT(futex((void *)page, WAKE | PRIVATE, 2, 0, 0, 0) == 2);
	WANT(CALL(MMAP, page, 4096, RW, ANON | 0x10, -1, 0) == page);
	WANT(futex((void *)page, WAKE | PRIVATE, 2, 0, 0, 0) == 1);
	joinAll(3);
}

// A lock and a turn taken by many: no wake-up is lost.
static volatile u32 lock;
static volatile long inside;
static void take(void) {
	u32 v = 0;
	if (__atomic_compare_exchange_n(&lock, &v, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return;
	while (__atomic_exchange_n(&lock, 2, __ATOMIC_SEQ_CST) != 0) futex(&lock, WAIT | PRIVATE, 2, 0, 0, 0);
}
static void give(void) { if (__atomic_exchange_n(&lock, 0, __ATOMIC_SEQ_CST) == 2) futex(&lock, WAKE | PRIVATE, 1, 0, 0, 0); }
static void locker(long n) { for (long i = 0; i < n; i++) { take(); inside++; give(); } }
static void pingPong(long me) {
	for (u32 i = 0; i < 300; i++) {
		u32 v;
		while ((v = load(&word)) % 2 != me) futex(&word, WAIT | PRIVATE, v, 0, 0, 0);
		add(&word, 1);
		futex(&word, WAKE | PRIVATE, 1, 0, 0, 0);
	}
}
static void futexStress(void) {
	for (int i = 0; i < 8; i++) thread(&tids[i], locker, 500);
	joinAll(8);
	WANT(inside == 4000);
	word = 0;
	for (int i = 0; i < 2; i++) thread(&tids[i], pingPong, i);
	joinAll(2);
	WANT(word == 600);
}

// --- robust lists

static struct robust { struct robust *next; long offset; struct robust *pending; } head;
static struct entry { struct robust *next; volatile u32 word; } entries[3];
static void holds(long broken) {
	u32 me = tid();
	head.offset = (long)&entries[0].word - (long)&entries[0];
	head.next = (void *)&entries[0], entries[0].next = (void *)&entries[1], entries[1].next = &head;
	head.pending = (void *)&entries[2];
	entries[0].word = me | 1u << 31, entries[1].word = 12345, entries[2].word = me;
	if (broken == 1) entries[1].next = (void *)&entries[0]; // a ring
	if (broken == 2) entries[0].next = (void *)0x123456789abcdef0;
	if (broken == 3) head.next = (void *)-8, head.pending = 0;
	WANT(CALL(SETROBUST, &head, 24) == 0 && CALL(SETROBUST, &head, 23) == -EINVAL);
	void *at = 0; u64 size = 0;
	WANT(CALL(GETROBUST, 0, &at, &size) == 0 && at == &head && size == 24);
}
static void robustCalls(void) {
	u32 dead = 1u << 30;
	for (int broken = 0; broken < 4; broken++) {
		thread(&tids[0], holds, broken);
		join(&tids[0]);
		if (broken == 3) continue;
		WANT(entries[0].word == (dead | 1u << 31) && entries[1].word == 12345);
		WANT(broken == 2 || entries[2].word == dead);
	}
}

// --- threads with descriptors and a directory of their own

enum { UNSHARE = 272, CHDIR = 80, GETCWD = 79, FCNTL = 72, MEMFD = 319, FTRUNCATE = 77, LSEEK = 8, PREAD = 17, PWRITE = 18 };
static int pipeFD[2];
static int open3(int fd) { return CALL(FCNTL, fd, 1) >= 0; } // F_GETFD
static void apart(long how) {
	if (how == 2) WANT(CALL(UNSHARE, FILES | FS) == 0 && CALL(UNSHARE, 1) == -EINVAL);
	WANT(open3(pipeFD[0]) && open3(pipeFD[1]));
	WANT(CALL(CLOSE, pipeFD[0]) == 0 && !open3(pipeFD[0]) && CALL(CHDIR, "/proc") == 0);
	WANT(CALL(PIPE, tids + 60) == 0);
	add(&ready, 1);
	while (!load(&stop)) sleepMs(1);
	char name[16];
	WANT(CALL(GETCWD, name, sizeof name) == 6 && same(name, "/proc"));
}
static void ownTables(void) {
	char name[256];
	WANT(CALL(CHDIR, "/") == 0);
	for (int how = 0; how < 3; how++) {
		WANT(CALL(PIPE, pipeFD) == 0);
		ready = stop = 0;
		u64 flags = how == 0 ? PTHREAD & ~(FILES | FS) : how == 1 ? PTHREAD & ~FILES : PTHREAD;
		WANT(spawn(flags, &tids[0], apart, how) > 0);
		waitFor(&ready, 1);
		WANT(open3(pipeFD[0]) && open3(pipeFD[1]) && !open3(pipeFD[1] + 1));
		WANT(CALL(GETCWD, name, sizeof name) > 0 && same(name, how == 1 ? "/proc" : "/"));
		// Its ends of the pipe go with it.
		WANT(CALL(CLOSE, pipeFD[1]) == 0);
		stop = 1;
		char c;
		WANT(CALL(READ, pipeFD[0], &c, 1) == 0);
		join(&tids[0]);
		WANT(CALL(CLOSE, pipeFD[0]) == 0 && CALL(CHDIR, "/") == 0);
	}
}
static void memfds(void) {
	char b[8];
	long fd = CALL(MEMFD, "some", 2), plain = CALL(MEMFD, "other", 1);
	WANT(fd >= 0 && plain >= 0 && CALL(FCNTL, plain, 1) == 1 && CALL(FCNTL, fd, 1) == 0);
	WANT(CALL(FCNTL, fd, 1034) == 0 && CALL(FCNTL, plain, 1034) == 1 && CALL(FCNTL, plain, 1033, 2) == -EPERM);
	WANT(CALL(WRITE, fd, "abcdef", 6) == 6 && CALL(FTRUNCATE, fd, 5000) == 0 && CALL(PREAD, fd, b, 8, 2) == 8 && same(b, "cdef"));
	char *p = (char *)CALL(MMAP, 0, 8192, RW, 2, fd, 0);
	WANT((long)p > 0 && p[0] == 'a' && p[4999] == 0);
	p[0] = 'x';
	WANT(CALL(PREAD, fd, b, 1, 0) == 1 && b[0] == 'a');
	WANT(CALL(FCNTL, fd, 1033, 6) == 0 && CALL(FCNTL, fd, 1034) == 6); // neither shorter nor longer
	WANT(CALL(FTRUNCATE, fd, 4999) == -EPERM && CALL(FTRUNCATE, fd, 5001) == -EPERM && CALL(FTRUNCATE, fd, 5000) == 0);
	WANT(CALL(PWRITE, fd, "yz", 2, 0) == 2 && CALL(PWRITE, fd, "yz", 2, 5000) == -EPERM);
	WANT(CALL(FCNTL, fd, 1033, 8) == -16 || CALL(FCNTL, fd, 1034) == 14);
	WANT(CALL(MUNMAP, p, 8192) == 0 && CALL(FCNTL, fd, 1033, 9) == 0 && CALL(FCNTL, fd, 1034) == 15);
	WANT(CALL(PWRITE, fd, "yz", 2, 0) == -EPERM && CALL(PREAD, fd, b, 2, 0) == 2 && b[0] == 'y');
	WANT(CALL(FCNTL, fd, 1033, 2) == -EPERM && CALL(FCNTL, fd, 1033, 1 << 20) == -EINVAL);
	WANT(CALL(MEMFD, "x", 1 << 20) == -EINVAL && CALL(MEMFD, 8, 0) == -EFAULT);
	char *name = (char *)map(4096, ANON);
	for (int i = 0; i < 260; i++) name[i] = 'n';
	WANT(CALL(MEMFD, name, 0) == -EINVAL);
	WANT(CALL(PIPE, pipeFD) == 0 && CALL(FCNTL, pipeFD[0], 1034) == -EINVAL);
	WANT(CALL(CLOSE, fd) == 0 && CALL(CLOSE, plain) == 0);
}

// --- mutexes with priority inheritance, as the kernel sees them

enum { LOCKPI = 6, UNLOCKPI = 7, TRYPI = 8, LOCKPI2 = 13, DIED = 1 << 30, WAITERS = 1u << 31 };
static volatile u32 pi, entered;
static void takePI(volatile u32 *w) {
	u32 none = 0;
	if (!__atomic_compare_exchange_n(w, &none, tid(), 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) WANT(futex(w, LOCKPI | PRIVATE, 0, 0, 0, 0) == 0);
	WANT((load(w) & 0x3fffffff) == tid());
}
static void givePI(volatile u32 *w) {
	u32 me = tid();
	if (!__atomic_compare_exchange_n(w, &me, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) WANT(futex(w, UNLOCKPI | PRIVATE, 0, 0, 0, 0) == 0);
}
static void lockerPI(long n) { for (long i = 0; i < n; i++) { takePI(&pi); inside++; if (i % 50 == 0) CALL(YIELD); givePI(&pi); } }
// holdsPI ends with the mutex: at once, or when somebody waits for it; stop is set
// once nobody is to wait for it in vain any more.
static void awaited(volatile u32 *w) { while (!(load(w) & WAITERS)) sleepMs(1); settle(); }
static void holdsPI(long untilAwaited) {
	takePI(&pi);
	add(&ready, 1);
	if (!untilAwaited) return;
	while (!load(&stop)) sleepMs(1);
	givePI(&pi); // who has given up may still be in the word
	takePI(&pi);
	add(&ready, 1);
	awaited(&pi);
}
static void waitsPI(long x) {
	add(&ready, 1);
	result = futex(&pi, LOCKPI | PRIVATE, 0, 0, 0, 0);
	entered = load(&pi) & ~WAITERS;
	(void)x;
	if ((load(&pi) & 0x3fffffff) == tid()) WANT(futex(&pi, UNLOCKPI | PRIVATE, 0, 0, 0, 0) == 0);
}
static void bother(long ms) { for (int i = 0; i < 20; i++) { sleepMs(ms); CALL(TGKILL, pid(), tids[32], 10); } }
static void hit(int sig, struct info *i, u64 *uc);
static void robustPI(long x) {
	static struct robust h;
	static struct entry e;
	h.offset = 8, h.next = (void *)((long)&e | 1), e.next = &h; // the low bit: with inheritance
	WANT(CALL(SETROBUST, &h, 24) == 0);
	takePI(&e.word);
	word2 = (long)&e.word;
	pi = 0;
	add(&ready, 1);
	awaited(&e.word);
	(void)x;
}
static void waitsRobustPI(long x) { volatile u32 *w = (u32 *)(long)word2; (void)x; result = futex(w, LOCKPI | PRIVATE, 0, 0, 0, 0); entered = (load(w) & ~WAITERS) == (tid() | DIED); }

static void priorityInheritance(void) {
	u32 me = tid();
	pi = 0;
	WANT(futex(&pi, LOCKPI, 0, 0, 0, 0) == 0 && pi == me && futex(&pi, LOCKPI, 0, 0, 0, 0) == -35 && futex(&pi, TRYPI, 0, 0, 0, 0) == -35);
	WANT(futex(&pi, UNLOCKPI, 0, 0, 0, 0) == 0 && pi == 0 && futex(&pi, UNLOCKPI, 0, 0, 0, 0) == -EPERM);
	WANT(futex(&pi, TRYPI, 0, 0, 0, 0) == 0 && pi == me);
	pi = 1000000; // nobody
	WANT(futex(&pi, LOCKPI, 0, 0, 0, 0) == -ESRCH && futex(&pi, UNLOCKPI, 0, 0, 0, 0) == -EPERM);
	WANT(futex((u32 *)8, LOCKPI, 0, 0, 0, 0) == -EFAULT && futex((u32 *)((long)&pi + 1), LOCKPI, 0, 0, 0, 0) == -EINVAL);
	pi = DIED;
	WANT(futex(&pi, LOCKPI, 0, 0, 0, 0) == 0 && pi == (me | DIED));
	pi = 0, inside = 0;
	for (int i = 0; i < 4; i++) thread(&tids[i], lockerPI, 500);
	joinAll(4);
	WANT(inside == 2000 && pi == 0);
	// The owner ends with it: who waits has it, and is told.
	ready = 0, stop = 1;
	thread(&tids[0], holdsPI, 1);
	waitFor(&ready, 2);
	long waiter = thread(&tids[1], waitsPI, 0);
	joinAll(2);
	WANT(result == 0 && entered == (waiter | DIED));
	for (int i = 0; i < 300; i++) { // ends just then
		pi = 0, ready = 0;
		thread(&tids[0], holdsPI, 0);
		waitFor(&ready, 1);
		for (volatile int j = 0; j < i * 10; j++) ;
		long r = futex(&pi, LOCKPI | PRIVATE, 0, 0, 0, 0);
		WANT(r == -ESRCH || (r == 0 && (pi & 0x3fffffff) == me));
		join(&tids[0]);
	}
	// In time, or not.
	pi = 0, ready = stop = 0;
	thread(&tids[0], holdsPI, 1);
	waitFor(&ready, 1);
	timespec soon;
	CALL(228, 0, &soon);
	if ((soon.n += 30000000) >= 1000000000) soon.s++, soon.n -= 1000000000;
	WANT(futex(&pi, LOCKPI, 0, &soon, 0, 0) == -ETIMEDOUT && futex(&pi, TRYPI, 0, 0, 0, 0) == -EAGAIN);
	CALL(228, 1, &soon);
	if ((soon.n += 30000000) >= 1000000000) soon.s++, soon.n -= 1000000000;
	long r = futex(&pi, LOCKPI2, 0, &soon, 0, 0);
	WANT(r == -ETIMEDOUT || r == -ENOSYS);
	stop = 1;
	waitFor(&ready, 2);
	WANT(futex(&pi, LOCKPI, 0, 0, 0, 0) == 0 && (pi & ~WAITERS) == (me | DIED)); // its end hands it over
	join(&tids[0]);
	// A signal's handler is no reason to come back without it.
	WANT(handle(10, hit, 0) == 0);
	pi = me, ready = 0;
	tids[32] = thread(&tids[1], waitsPI, 0);
	waitFor(&ready, 1);
	thread(&tids[0], bother, 3);
	join(&tids[0]);
	result = 77;
	WANT(futex(&pi, UNLOCKPI | PRIVATE, 0, 0, 0, 0) == 0);
	join(&tids[1]);
	WANT(result == 0 && pi == 0);
	ready = 0;
	thread(&tids[0], robustPI, 0);
	waitFor(&ready, 1);
	thread(&tids[1], waitsRobustPI, 0);
	joinAll(2);
	WANT(result == 0 && entered == 1);
}

// --- signals

static volatile u32 hits[64], onAlt;
static volatile u64 where, errorCode, trapNo, cr2;
static void hit(int sig, struct info *i, u64 *uc) { (void)i, (void)uc; add(&hits[sig], 1); }
static void sleeper(long x) { (void)x; add(&ready, 1); while (!stop) CALL(PAUSE); }
static void blocker(long set) { u64 s = set; CALL(SIGPROCMASK, 0, &s, 0, 8); add(&ready, 1); while (!stop) sleepMs(1); }
static void reader(long fd) { char c; add(&ready, 1); result = CALL(READ, fd, &c, 1); }
// prod sends a signal to a thread that sleeps, or is about to, in a call that the signal
// ends; the next one once the handler of the last has run, and result says no more than
// this that the call has ended.
enum { NOTYET = 1 << 20 };
static void prod(long t, int sig) {
	for (u32 n = load(&hits[sig]); result == NOTYET; ) {
		WANT(CALL(TGKILL, pid(), t, sig) == 0 || result != NOTYET);
		n++;
		while (load(&hits[sig]) < n && result == NOTYET) CALL(YIELD);
		for (int i = 0; i < 20 && result == NOTYET; i++) sleepMs(1);
	}
}
static void sender(long me) { for (int i = 0; i < 200; i++) { CALL(TGKILL, pid(), tids[i % 4], 10); if (i % 16 == me) CALL(KILL, pid(), 12); } }
static void victim(long x) {
	(void)x;
	char stack[65536]; // for three frames, one in the other
	struct { void *sp; int flags; u64 size; } ss = { stack, 0, sizeof stack };
	WANT(CALL(SIGALTSTACK, &ss, 0) == 0);
	tids[32 + x] = tid();
	add(&ready, 1);
	u64 n = 0;
	while (!load(&stop)) {
		u64 a[2] = { n, ~n }, b[2];
		__asm__ volatile("movdqu %1,%%xmm8\nmov $200,%%ecx\n1: dec %%ecx\njnz 1b\nmovdqu %%xmm8,%0" : "=m"(b) : "m"(a) : "rcx", "xmm8");
		WANT(a[0] == b[0] && a[1] == b[1]);
		if (++n % 8 == 0) CALL(YIELD);
	}
}
static void fault(int sig, struct info *i, u64 *uc) {
	char here;
	add(&hits[sig], 1);
	where = i->addr, errorCode = uc[5 + 19], trapNo = uc[5 + 20], cr2 = uc[5 + 22];
	u64 sp = uc[5 + 15];
	onAlt = (u64)&here < sp - 65536 || (u64)&here > sp + 65536;
	if (uc[5 + 16] == 0) CALL(EXITGROUP, 9);
	uc[5 + 16] += 2; // "mov %eax,(%rdx)"
}
static void faulter(long n) {
	for (long i = 1; i <= n; i++) __asm__ volatile("mov %%eax,(%%rdx)" :: "a"(1), "d"(i * 4096) : "memory");
}
static __attribute__((noinline)) long deep(long n) { volatile char b[512]; b[0] = n; return n == 0 ? 0 : deep(n + 1) + b[0]; }
static void overflown(int sig, struct info *i, u64 *uc) { (void)sig, (void)i, (void)uc; add(&hits[11], 1); CALL(EXIT, 0); }
static char bigAlt[16384];
static void overflows(long x) {
	struct { void *sp; int flags; u64 size; } ss = { bigAlt, 0, sizeof bigAlt };
	WANT(CALL(SIGALTSTACK, &ss, 0) == 0);
	result = deep(x);
}
static void signalCalls(void) {
	int fd[2], status;
	static u64 usr1 = 1 << 9, usr2 = 1 << 11, none = 0;
	// A process's signal goes to a thread that does not block it.
	WANT(handle(10, hit, 0) == 0 && handle(12, hit, 0x10000000) == 0);
	WANT(CALL(SIGPROCMASK, 0, &usr1, 0, 8) == 0);
	ready = stop = 0;
	thread(&tids[0], blocker, usr1);
	waitFor(&ready, 1);
	WANT(CALL(KILL, pid(), 10) == 0);
	settle();
	WANT(hits[10] == 0);
	void unblocks(long x) { (void)x; CALL(SIGPROCMASK, 2, &none, 0, 8); CALL(YIELD); }
	thread(&tids[1], unblocks, 0);
	join(&tids[1]);
	WANT(hits[10] == 1);
	stop = 1;
	join(&tids[0]);
	WANT(CALL(SIGPROCMASK, 2, &none, 0, 8) == 0);
	// tgkill reaches that thread alone, and interrupts what it sleeps in.
	WANT(CALL(PIPE, fd) == 0);
	ready = 0, result = NOTYET;
	long t = thread(&tids[0], reader, fd[0]);
	waitFor(&ready, 1);
	prod(t, 10);
	join(&tids[0]);
	WANT(result == -EINTR && hits[10] >= 2);
	t = thread(&tids[0], reader, fd[0]);
	waitFor(&ready, 2);
	settle();
	WANT(CALL(TGKILL, pid(), t, 12) == 0);
	settle();
	WANT(CALL(WRITE, fd[1], "x", 1) == 1);
	join(&tids[0]);
	WANT(result == 1 && hits[12] == 1);
	WANT(CALL(TGKILL, pid(), 32000, 10) == -ESRCH && CALL(TGKILL, pid() + 1, tid(), 10) == -ESRCH && CALL(200, tid(), 0) == 0);
	// A futex wait ends with the signal, and starts over with SA_RESTART.
	word = ready = 0, result = NOTYET;
	void waitsOnce(long x) { (void)x; add(&ready, 1); result = futex(&word, WAIT | PRIVATE, 0, 0, 0, 0); }
	t = thread(&tids[0], waitsOnce, 0);
	waitFor(&ready, 1);
	sleepers(&word, 1);
	prod(t, 10);
	join(&tids[0]);
	WANT(result == -EINTR);
	t = thread(&tids[0], waitsOnce, 0);
	waitFor(&ready, 2);
	sleepers(&word, 1);
	WANT(CALL(TGKILL, pid(), t, 12) == 0);
	waitFor(&hits[12], 2);
	sleepers(&word, 1);
	WANT(futex(&word, WAKE | PRIVATE, 1, 0, 0, 0) == 1);
	join(&tids[0]);
	WANT(result == 0);
	// sigtimedwait takes a process's signal that all others block.
	WANT(CALL(SIGPROCMASK, 0, &usr2, 0, 8) == 0);
	ready = 0;
	void takes(long x) { (void)x; struct info i; add(&ready, 1); result = CALL(SIGTIMEDWAIT, &usr2, &i, 0, 8); }
	thread(&tids[0], takes, 0);
	waitFor(&ready, 1);
	settle();
	WANT(CALL(KILL, pid(), 12) == 0);
	join(&tids[0]);
	WANT(result == 12);
	WANT(CALL(SIGPROCMASK, 2, &none, 0, 8) == 0);
	// Faults in several threads at once, each with its own address.
	WANT(handle(11, fault, 0) == 0);
	hits[11] = 0;
	for (int i = 0; i < 4; i++) thread(&tids[i], faulter, 15);
	joinAll(4);
	WANT(hits[11] == 60);
	faulter(3);
	WANT(where == 0x3000 && cr2 == 0x3000 && trapNo == 14 && errorCode == 6);
	__asm__ volatile("mov %%eax,(%%rdx)" :: "a"(1), "d"(0x8000000000000000ul) : "memory");
	WANT(where == 0 && trapNo == 13 && errorCode == 0);
	// A stack that overflows, onto the alternate one.
	WANT(handle(11, overflown, 0x08000000) == 0);
	thread(&tids[0], overflows, 1);
	join(&tids[0]);
	WANT(hits[11] == 65);
	// Blocked, a fault kills: the process, whichever thread it is.
	long child = CALL(FORK);
	if (child == 0) {
		void blockedFault(long x) { u64 s = 1 << 10; (void)x; CALL(SIGPROCMASK, 0, &s, 0, 8); faulter(1); }
		thread(&tids[0], blockedFault, 0);
		for (;;) CALL(PAUSE);
	}
	WANT(CALL(WAIT4, child, &status, 0, 0) == child && (status & 0x7f) == 11);
}

static void storm(void) {
	struct { long is, iu, vs, vu; } often = { 0, 500, 0, 500 }, off = { 0, 0, 0, 0 };
	for (int sig = 10; sig <= 14; sig++) WANT(handle(sig, hit, sig % 4 ? 0x18000000 : 0x10000000) == 0);
	ready = stop = 0;
	for (int i = 0; i < 4; i++) thread(&tids[i], victim, i);
	waitFor(&ready, 4);
	for (int i = 0; i < 4; i++) tids[i + 40] = tids[i], tids[i] = tids[32 + i];
	WANT(CALL(SETITIMER, 0, &often, 0) == 0);
	for (int i = 0; i < 4; i++) thread(&tids[i + 8], sender, i);
	for (int i = 0; i < 4; i++) join(&tids[i + 8]);
	waitFor(&hits[10], 1), waitFor(&hits[12], 1), waitFor(&hits[14], 1);
	WANT(CALL(SETITIMER, 0, &off, 0) == 0);
	stop = 1;
	joinAll(4);
}

// --- ends

static void spins(long x) { (void)x; add(&ready, 1); for (;;) __asm__ volatile(""); }
static void touches(long x) { (void)x; add(&ready, 1); for (;;) { long p = map(65536, ANON); if (p > 0) { for (int i = 0; i < 65536; i += 4096) ((volatile char *)p)[i] = 1; CALL(MUNMAP, p, 65536); } } }
static void waitsForever(long x) { add(&ready, 1); for (;;) futex(&word, WAIT | PRIVATE, word, 0, 0, x); }
static void reads(long fd) { char c; add(&ready, 1); for (;;) CALL(READ, fd, &c, 1); }
static void sleeps(long x) { (void)x; add(&ready, 1); for (;;) sleepMs(1000); }
static void forker(long x) { (void)x; add(&ready, 1); for (;;) { long c = CALL(FORK); if (c == 0) CALL(EXIT, 0); if (c > 0) CALL(WAIT4, c, 0, 0, 0); } }
static void cloner(long x) { (void)x; static volatile u32 t; add(&ready, 1); for (;;) { if (spawn(PTHREAD, &t, countUp, 1) > 0) join(&t); } }
static long busy(void) {
	int fd[2];
	long first = 0;
	WANT(CALL(PIPE, fd) == 0);
	entry kinds[] = { spins, touches, waitsForever, reads, sleeps, forker, touches, cloner };
	ready = word = 0;
	for (int i = 0; i < 8; i++) {
		long t = thread(&tids[i], kinds[i], fd[0]);
		if (i == 0) first = t;
	}
	waitFor(&ready, 8);
	return first;
}
static void endsGroup(long code) { CALL(EXITGROUP, code); }
static char *self[] = { 0, "execed", 0 }; // not /proc/self/exe, which goes with the first thread
static void execs(long x) { (void)x; CALL(EXECVE, self[0], self, 0); CALL(EXITGROUP, 98); }
static volatile u32 *mayEnd; // shared with the parent
static volatile u32 first; // 0 once the first thread has ended
static void exitsLast(long code) { while (!load(mayEnd) || load(&first)) sleepMs(1); add(&count, 1); CALL(EXIT, code); }

static void ends(void) {
	int status = 0;
	for (int i = 0; i < 8; i++) {
		long child = CALL(FORK);
		if (child == 0) {
			long first = busy();
			static volatile u32 t;
			switch (i) {
			case 0: case 1: CALL(EXITGROUP, 20 + i);
			case 2: case 3: thread(&t, endsGroup, 20 + i); break; // from another thread
			case 4: thread(&t, execs, 0); break;
			case 5: execs(0);
			case 6: WANT(handle(15, 0, 0) == 0); CALL(TGKILL, pid(), first, 15); break;
			case 7: break; // killed from outside
			}
			for (;;) CALL(PAUSE);
		}
		WANT(child > 0);
		if (i == 7) { sleepMs(60); CALL(KILL, child, 9); }
		WANT(CALL(WAIT4, child, &status, 0, 0) == child);
		int want[] = { 20 << 8, 21 << 8, 22 << 8, 23 << 8, 42 << 8, 42 << 8, 15, 9 };
		if (status != want[i]) { say("end "); sayNumber(i); say(" is "); sayNumber(status); say("\n"); CALL(EXITGROUP, 1); }
	}
	// The first thread ends before the others: the process's status is that of the last one.
	mayEnd = (void *)map(4096, SHAREDANON);
	long child = CALL(FORK);
	if (child == 0) { count = 0, first = 1; CALL(SETTIDADDRESS, &first); thread(&tids[0], exitsLast, 5); CALL(EXIT, 3); }
	settle();
	WANT(CALL(WAIT4, child, &status, 1, 0) == 0);
	add(mayEnd, 1);
	WANT(CALL(WAIT4, child, &status, 0, 0) == child && status == 0x500);
	// ... and one of them executes a program under the first one's id.
	child = CALL(FORK);
	if (child == 0) { void later(long x) { sleepMs(20); execs(x); } thread(&tids[0], later, 0); CALL(EXIT, 3); }
	WANT(CALL(WAIT4, child, &status, 0, 0) == child && status == 42 << 8);
	// Two threads execute at once: one of them wins.
	child = CALL(FORK);
	// Beside an execve a clone with CLONE_FS may be refused (EAGAIN).
	if (child == 0) { for (int i = 0; i < 4; i++) spawn(PTHREAD, &tids[i], execs, 0); for (;;) CALL(PAUSE); }
	WANT(CALL(WAIT4, child, &status, 0, 0) == child && status == 42 << 8);
}

// A thread that waits for its vfork child is no longer waited for than others.
// The child lasts until its parent, or the parent's first thread, has ended.
static void vforks(long x) {
	long ours = pid();
	(void)x;
	add(&ready, 1);
	if (CALL(VFORK) == 0) {
		add(&ready, 1);
		while (parent() == ours && load(&first)) sleepMs(1);
		CALL(EXIT, 0);
	}
}
static void outlives(long x) { sleepMs(40); word2 = x; CALL(EXIT, 0); }
static void vforkEnds(void) {
	int status = 0;
	for (int i = 0; i < 4; i++) {
		long child = CALL(FORK);
		if (child == 0) {
			ready = 0, first = 1;
			CALL(SETTIDADDRESS, &first);
			thread(&tids[0], vforks, 0);
			waitFor(&ready, 2);
			if (i == 0) CALL(EXITGROUP, 25);
			if (i == 1) execs(0);
			if (i == 2) { CALL(EXIT, 25); }
			for (;;) CALL(PAUSE);
		}
		if (i == 3) { sleepMs(40); CALL(KILL, child, 15); }
		int want[] = { 25 << 8, 42 << 8, 0, 15 };
		WANT(CALL(WAIT4, child, &status, 0, 0) == child && status == want[i]);
	}
	// Memory outlives the process that had it first.
	long child = CALL(FORK);
	if (child == 0) { WANT(rawClone(VM | 17, newStack(), 0, 0, 0, outlives, 3) > 0); CALL(EXITGROUP, 6); }
	WANT(CALL(WAIT4, child, &status, 0, 0) == child && status == 0x600);
	sleepMs(60);
}

// --- stop and continue: all threads, and those that sleep go on sleeping

static volatile u32 *beats;
static void beat(long i) { for (;;) add(&beats[i], 1); }
static void stops(void) {
	int status = 0;
	beats = (void *)map(4096, SHAREDANON);
	long child = CALL(FORK);
	if (child == 0) {
		for (int i = 0; i < 3; i++) thread(&tids[i], beat, i);
		timespec ts = { 0, 150000000 };
		long slept = CALL(NANOSLEEP, &ts, 0);
		while (!load(&beats[3])) sleepMs(1); // however long it was stopped, it is there to go on
		CALL(EXITGROUP, slept == 0 ? 33 : 34);
	}
	while (!load(&beats[0]) || !load(&beats[1]) || !load(&beats[2])) CALL(YIELD);
	WANT(CALL(KILL, child, 19) == 0 && CALL(WAIT4, child, &status, 2, 0) == child && status == 0x137f);
	settle();
	u32 a = load(&beats[0]), b = load(&beats[1]), c = load(&beats[2]);
	settle();
	WANT(a == load(&beats[0]) && b == load(&beats[1]) && c == load(&beats[2]));
	WANT(CALL(KILL, child, 18) == 0 && CALL(WAIT4, child, &status, 8, 0) == child && status == 0xffff);
	while (a == load(&beats[0]) || b == load(&beats[1]) || c == load(&beats[2])) CALL(YIELD);
	add(&beats[3], 1);
	WANT(CALL(WAIT4, child, &status, 0, 0) == child && status == 33 << 8);
}

// --- fork and execve from several threads, while others change the memory

static void forkExec(long me) {
	for (int i = 0; i < 6; i++) {
		int status = 0;
		volatile long mark = me * 100 + i;
		long child = me % 2 ? CALL(FORK) : CALL(CLONE, 17, 0, 0, 0, 0);
		if (child == 0) {
			if (mark != me * 100 + i) CALL(EXIT, 1);
			execs(0);
		}
		mark = 0;
		WANT(child > 0 && CALL(WAIT4, child, &status, 0, 0) == child && status == 42 << 8);
	}
}
static void forkExecs(void) {
	static volatile u32 others[2];
	stop = 0;
	void churn(long x) { (void)x; while (!load(&stop)) { long p = map(65536, ANON); for (int i = 0; p > 0 && i < 65536; i += 4096) ((volatile char *)p)[i] = 1; CALL(MUNMAP, p, 65536); } }
	for (int i = 0; i < 2; i++) thread(&others[i], churn, 0);
	for (int i = 0; i < 6; i++) thread(&tids[i], forkExec, i);
	joinAll(6);
	stop = 1;
	for (int i = 0; i < 2; i++) join(&others[i]);
	WANT(CALL(WAIT4, -1, 0, 0, 0) == -ECHILD);
}

// --- everything at once

// chaos makes calls that make some sense, at random and beside others that do
// the same to the same memory, descriptors, words and threads. Whatever comes
// of it is right, as long as it ends.
static volatile u32 words[16];
static char *arena;
static u64 seed;
static volatile u32 alive[8];
static u64 random(u64 *x) { *x ^= *x << 13, *x ^= *x >> 7, *x ^= *x << 17; return *x >> 11; }
static void chaos(long me) {
	u64 x = (me + 1) * 0x9e3779b97f4a7c15 ^ seed;
	char alt[49152];
	struct { void *sp; int flags; u64 size; } ss = { alt, 0, sizeof alt };
	int fd[2], status;
	timespec soon = { 0, 200000 };
	#define RND(n) ((long)(random(&x) % (n)))
	for (int i = 0; i < 300; i++) {
		volatile u32 *w = RND(8) ? &words[RND(16)] : (volatile u32 *)(arena + RND(64) * 4096);
		char *page = arena + RND(60) * 4096;
		u64 set = RND(1 << 16) << 8 & ~(1ul << 10), handled; // a fault is never blocked
		switch (RND(24)) {
		case 0: case 1: futex(w, WAIT | RND(2) * PRIVATE, 0, &soon, 0, 0); break;
		case 2: futex(w, WAKE | RND(2) * PRIVATE, RND(4), 0, 0, 0); break;
		case 3: futex(w, REQUEUE | RND(2) * PRIVATE, RND(3), (void *)RND(3), &words[RND(16)], 0); break;
		case 4: futex(w, WAKEOP | RND(2) * PRIVATE, 1, (void *)1, &words[RND(16)], x); break;
		case 5: CALL(MMAP, page, (1 + RND(4)) * 4096, RW, 0x10 | (RND(4) ? ANON : SHAREDANON), -1, 0); break;
		case 6: CALL(MUNMAP, page, (1 + RND(4)) * 4096); break;
		case 7: CALL(MPROTECT, page, 4096 * (1 + RND(4)), RND(8)); break;
		case 8: CALL(MADVISE, page, 4096 * (1 + RND(4)), RND(2) ? 4 : 8); break;
		case 9: CALL(TGKILL, pid(), alive[RND(8)], 8 + RND(3) * 2); break;
		case 10: CALL(KILL, pid(), 12); break;
		case 11: CALL(SIGPROCMASK, RND(3), &set, &handled, 8); break;
		case 12: ss.flags = RND(4) ? 0 : 2; CALL(SIGALTSTACK, &ss, 0); break;
		case 13: CALL(SETROBUST, page, 24); break;
		case 14: { long c = CALL(FORK); if (c == 0) { *(volatile char *)(arena + 63 * 4096) = i; CALL(EXIT, 0); } if (c > 0) CALL(WAIT4, RND(2) ? c : -1, &status, RND(2), 0); break; }
		case 15: if (CALL(293, fd, 0x800) == 0) { CALL(WRITE, fd[1], words, RND(64)); CALL(READ, fd[0], page, 8); CALL(CLOSE, fd[RND(2)]); } break;
		case 16: CALL(CLOSE, 3 + RND(20)); break;
		case 17: CALL(NANOSLEEP, &soon, 0); break;
		case 18: { static volatile u32 t[8]; spawn(PTHREAD, &t[me], countUp, 3); break; }
		case 19: CALL(SETAFFINITY, alive[RND(8)], 8, &set); break;
		case 20: CALL(YIELD); break;
		case 21: if (RND(40) == 0) CALL(EXIT, 0); break;
		case 22: CALL(MEMBARRIER, 8, 0, 0); break;
		default: *(volatile char *)page = i; break; // the handler skips it where there is no page
		}
	}
}
static void skipStore(int sig, struct info *i, u64 *uc) {
	u64 ip = uc[5 + 16], at = i->addr - (u64)arena;
	(void)sig;
	if (at >= 64 * 4096 || ip < 0x1000) CALL(EXITGROUP, 11);
	CALL(MMAP, i->addr & -4096, 4096, RW, 0x10 | ANON, -1, 0);
}
static void everything(long n) {
	seed = n * 0x2545f4914f6cdd1d;
	struct { long is, iu, vs, vu; } often = { 0, 700, 0, 700 };
	arena = (char *)map(64 * 4096, ANON);
	for (int sig = 8; sig <= 14; sig++) if (sig != 9 && sig != 11) WANT(handle(sig, hit, sig & 2 ? 0x18000000 : 0) == 0);
	WANT(handle(11, skipStore, 0x40000000) == 0 && handle(7, skipStore, 0x40000000) == 0);
	CALL(SETITIMER, 0, &often, 0);
	for (int i = 0; i < 8; i++) alive[i] = spawn(PTHREAD, &tids[i], chaos, i);
	for (int i = 0; i < 8; i++) join(&tids[i]);
}
// --- a great many

static void parks(long x) { (void)x; futex(&word, WAIT | PRIVATE, 0, 0, 0, 0); }
static void million(void) {
	long n = 0, err = 0, stack = map(8192, ANON);
	u32 ptid;
	word = 0;
	// All on one stack: none of them returns to it before the end.
	for (; n < 1000000; n++) {
		err = rawClone(PTHREAD & ~CHILD_CLEARTID, stack + 8192, &ptid, 0, 0, parks, 0);
		if (err < 0) break;
	}
	WANT(err == -EAGAIN && n > 1000 && n < 1000000);
	say("EAGAIN\n");
	CALL(EXITGROUP, 0);
}

int program(int argc, char **argv) {
	WANT(argc > 1);
	const char *how = argv[1];
	self[0] = argv[0];
	if (same(how, "execed")) { WANT(pid() == tid()); return 42; }
	else if (same(how, "clone")) cloneCalls();
	else if (same(how, "futex")) futexCalls();
	else if (same(how, "stress")) futexStress();
	else if (same(how, "robust")) robustCalls();
	else if (same(how, "apart")) ownTables(), memfds();
	else if (same(how, "pi")) priorityInheritance();
	else if (same(how, "signals")) signalCalls();
	else if (same(how, "storm")) storm();
	else if (same(how, "ends")) ends();
	else if (same(how, "vfork")) vforkEnds();
	else if (same(how, "stop")) stops();
	else if (same(how, "forkexec")) forkExecs();
	else if (same(how, "chaos")) everything(argc > 2 ? argv[2][0] : 0);
	else if (same(how, "million")) million();
	else if (same(how, "none")) WANT(CALL(CLONE3, 0, 0) == -ENOSYS && CALL(RSEQ, 0, 32, 0, 0) == -ENOSYS); // under Linux there are
	else return 2;
	say("right\n");
	return 0;
}
