// Calls on memory that is not there, or of which a part is: what they answer, and
// what is lost of what they were to move. And limits, which are a process's. It says
// the same under Linux.
#include "guest.h"

enum {
	OPEN = 2, FSTAT = 5, POLL = 7, LSEEK = 8, IOCTL = 16, PREAD = 17, PWRITE = 18, READV = 19, WRITEV = 20, SELECT = 23,
	MINCORE = 27, GETITIMER = 36, SENDTO = 44, RECVFROM = 45, SENDMSG = 46, RECVMSG = 47, SOCKETPAIR = 53, UNAME = 63,
	FCNTL = 72, GETCWD = 79, READLINK = 89, GETRLIMIT = 97, SETRLIMIT = 160, GETTIME = 228, GETDENTS = 217, EPOLLWAIT = 232,
	EPOLLCTL = 233, PPOLL = 271, TIMERFD = 283, TIMERFDSET = 286, TIMERFDGET = 287, EVENTFD = 290, EPOLL = 291, PIPE2 = 293,
	PREADV = 295, PWRITEV = 296, PRLIMIT = 302, MEMFD = 319, USERFAULTFD = 323, SIGPENDING = 127, GETRANDOM = 318, MKDIR = 83,
	UNLINK = 87, RMDIR = 84, MSYNC = 26, SENDFILE = 40, SYMLINK = 88, GETTIMEOFDAY = 96, SIGNALFD = 289
};
enum { PAGE = 4096, FIONREAD = 0x541b, NONBLOCK = 04000 };

struct vec { void *base; u64 length; };
struct pollfd { int fd; short events, revents; };
struct event { u32 events; u64 data; } __attribute__((packed));
struct limit { u64 soft, hard; };
struct spec { long interval, intervalNs, value, valueNs; };

static char *good, *end; // pages that are there, and where they end
static char *const bad = (char *)0x10000;
static char *const wild = (char *)0xffff800000000000;
static char buf[3 * PAGE];

static void show(const char *what, long v) {
	say(what);
	say(" ");
	sayNumber(v);
	say("\n");
}
#define SHOW(call) show(#call, call)

// sum tells what is in memory, in few words.
static long sum(const char *p, long n) {
	u64 s = 0;
	for (long i = 0; i < n; i++) s = s * 31 + (unsigned char)p[i];
	return s % 1000000007;
}

static void fill(char *p, long n, int from) {
	for (long i = 0; i < n; i++) p[i] = from + i * 7;
}

static long waiting(int fd) {
	int n = -1;
	CALL(IOCTL, fd, FIONREAD, &n);
	return n;
}

// drain reads the rest, without waiting.
static void drain(const char *what, int fd) {
	static char all[128 * 1024];
	long n = 0, got;
	while (waiting(fd) > 0 && (got = CALL(READ, fd, all + n, sizeof all - n)) > 0) n += got;
	say(what);
	show(" rest", n);
	show(" sum", sum(all, n));
}

static void reads(const char *what, int r, int w) {
	say(what);
	say("\n");
	fill(buf, sizeof buf, 1);
	SHOW(CALL(WRITE, w, buf, 10));
	SHOW(CALL(READ, r, bad, 10));
	SHOW(CALL(READ, r, wild, 10));
	SHOW(CALL(READ, r, end - 4, 10));
	SHOW(CALL(READ, r, good, 0));
	SHOW(CALL(READ, r, bad, 0));
	SHOW(CALL(READ, r, good, -1));
	SHOW(CALL(READ, r, good, 1ul << 62));
	SHOW(waiting(r));
	SHOW(CALL(READ, r, end - 4, 4));
	SHOW(sum(end - 4, 4));
	drain("after ten", r);
	for (int i = 0; i < 3; i++) { // pieces of two pages and a bit
		CALL(WRITE, w, buf + i, PAGE + 100);
	}
	SHOW(CALL(READ, r, end - PAGE - 50, 3 * PAGE));
	SHOW(waiting(r));
	SHOW(CALL(READ, r, end - PAGE, 3 * PAGE));
	SHOW(waiting(r));
	drain("after pieces", r);
	CALL(WRITE, w, buf, 100);
	CALL(WRITE, w, buf + 100, 100);
	CALL(WRITE, w, buf + 200, PAGE);
	SHOW(CALL(READ, r, end - 150, 200));
	SHOW(waiting(r));
	struct vec two[3] = { { good, 50 }, { bad, 50 }, { good + 50, 50 } };
	SHOW(CALL(READV, r, two, 3));
	SHOW(waiting(r));
	struct vec odd[2] = { { good, 50 }, { wild, 50 } };
	SHOW(CALL(READV, r, odd, 2));
	odd[1] = (struct vec){ good, -1 };
	SHOW(CALL(READV, r, odd, 2));
	SHOW(CALL(READV, r, bad, 2));
	SHOW(CALL(READV, r, two, 1025));
	SHOW(CALL(READV, 99, bad, 2));
	SHOW(CALL(READV, w == r ? 99 : w, bad, 2));
	SHOW(CALL(READV, r, two, 0));
	SHOW(waiting(r));
	drain("after vectors", r);
}

static void writes(const char *what, int r, int w) {
	say(what);
	say("\n");
	fill(good, end - good, 3);
	SHOW(CALL(WRITE, w, bad, 10));
	SHOW(CALL(WRITE, w, wild, 10));
	SHOW(CALL(WRITE, w, end - 4, 10));
	SHOW(CALL(WRITE, w, bad, 0));
	SHOW(waiting(r));
	SHOW(CALL(WRITE, w, end - 2 * PAGE, 3 * PAGE));
	SHOW(waiting(r));
	SHOW(CALL(WRITE, w, end - 2 * PAGE + 100, 2 * PAGE));
	SHOW(waiting(r));
	struct vec two[3] = { { good, 50 }, { bad, 50 }, { good + 50, 50 } };
	SHOW(CALL(WRITEV, w, two, 3));
	SHOW(waiting(r));
	two[1].length = 0;
	SHOW(CALL(WRITEV, w, two, 3));
	struct vec odd[2] = { { good, 50 }, { wild, 50 } };
	SHOW(CALL(WRITEV, w, odd, 2));
	SHOW(CALL(WRITEV, w, bad, 2));
	SHOW(CALL(WRITEV, 99, bad, 2));
	SHOW(waiting(r));
	drain("after writes", r);
}

// full fills a pipe to its brim and makes room again.
static void full(void) {
	int p[2];
	struct pollfd f;
	CALL(PIPE2, p, NONBLOCK);
	f = (struct pollfd){ p[1], 4, 0 };
	fill(buf, sizeof buf, 9);
	long n = 0, got;
	for (int i = 0; (got = CALL(WRITE, p[1], buf, 1000)) > 0 && i < 1000; i++) n += got;
	show("written by 1000", n);
	SHOW(got);
	SHOW(CALL(POLL, &f, 1, 0));
	SHOW(CALL(WRITE, p[1], buf, 90));
	SHOW(CALL(WRITE, p[1], buf, 96));
	SHOW(CALL(WRITE, p[1], buf, 7));
	SHOW(CALL(READ, p[0], buf, 3999));
	SHOW(CALL(POLL, &f, 1, 0));
	SHOW(CALL(READ, p[0], buf, 2));
	SHOW(CALL(POLL, &f, 1, 0));
	SHOW(CALL(WRITE, p[1], buf, PAGE));
	SHOW(CALL(WRITE, p[1], buf, 1));
	drain("after the brim", p[0]);
	SHOW(CALL(WRITE, p[1], good, 2 * PAGE + 1));
	SHOW(CALL(WRITE, p[1], buf, 2 * PAGE + 1));
	SHOW(CALL(WRITE, p[1], buf, 100));
	drain("after odd ones", p[0]);
	CALL(CLOSE, p[0]);
	CALL(CLOSE, p[1]);
}

static void files(void) {
	int fd = CALL(MEMFD, "partial", 0);
	say("files\n");
	fill(good, end - good, 5);
	SHOW(CALL(WRITE, fd, end - 2 * PAGE - 100, 3 * PAGE));
	SHOW(CALL(LSEEK, fd, 0, 1));
	SHOW(CALL(WRITE, fd, bad, 10));
	SHOW(CALL(WRITE, fd, bad, 0));
	SHOW(CALL(LSEEK, fd, 0, 1));
	SHOW(CALL(PWRITE, fd, end - 50, 100, 100));
	SHOW(CALL(PWRITE, fd, bad, 100, 100));
	SHOW(CALL(LSEEK, fd, 10, 0));
	SHOW(CALL(READ, fd, bad, 100));
	SHOW(CALL(LSEEK, fd, 0, 1));
	SHOW(CALL(READ, fd, end - 5000, 6000));
	SHOW(CALL(LSEEK, fd, 0, 1));
	SHOW(sum(end - 5000, 5000));
	SHOW(CALL(READ, fd, end - 7, 100));
	SHOW(CALL(LSEEK, fd, 0, 1));
	SHOW(CALL(READ, fd, buf, 1000));
	SHOW(sum(buf, 1000));
	SHOW(CALL(PREAD, fd, end - 7, 100, 3));
	SHOW(CALL(PREAD, fd, bad, 100, 3));
	SHOW(CALL(PREAD, fd, bad, 100, 1 << 20));
	SHOW(CALL(PREAD, fd, wild, 100, 1 << 20));
	SHOW(CALL(PREAD, fd, good, 100, -1));
	SHOW(CALL(READ, fd, good, -1));
	struct vec v[3] = { { good, 50 }, { bad, 50 }, { good + 50, 50 } };
	SHOW(CALL(LSEEK, fd, 0, 0));
	SHOW(CALL(READV, fd, v, 3));
	SHOW(CALL(LSEEK, fd, 0, 1));
	SHOW(CALL(WRITEV, fd, v, 3));
	SHOW(CALL(LSEEK, fd, 0, 1));
	SHOW(CALL(PREADV, fd, v, 3, 0));
	SHOW(CALL(PWRITEV, fd, v, 3, 0));
	SHOW(CALL(PREADV, fd, v, 3, -5));
	SHOW(CALL(PREADV, fd, bad, 3, 0));
	SHOW(CALL(LSEEK, fd, 0, 2));
	SHOW(CALL(READ, fd, bad, 100));
	CALL(LSEEK, fd, 0, 0);
	long n = CALL(READ, fd, buf, sizeof buf);
	show("the file", n);
	show("sum", sum(buf, n));
	int p[2];
	CALL(PIPE2, p, 0);
	SHOW(CALL(SENDFILE, p[1], fd, bad, 10));
	SHOW(waiting(p[0]));
	CALL(CLOSE, p[0]);
	CALL(CLOSE, p[1]);
	CALL(CLOSE, fd);
}

// entries reads a directory whose names are all as long, with memory that ends.
static void entries(void) {
	char name[] = "/tmp/partial.0000000/a";
	long seen = 0, mask = 0;
	long at = sizeof "/tmp/partial." - 1;
	say("entries\n");
	for (long i = 0, v = pid(); i < 7; i++, v /= 10) name[at + 6 - i] = '0' + v % 10;
	char dir[32];
	memcpy(dir, name, sizeof name);
	dir[sizeof name - 3] = 0;
	SHOW(CALL(MKDIR, dir, 0700));
	for (int i = 0; i < 6; i++) {
		name[sizeof name - 2] = 'a' + i;
		int f = CALL(OPEN, name, 0102, 0600);
		CALL(CLOSE, f);
	}
	int fd = CALL(OPEN, dir, 0200000);
	SHOW(CALL(GETDENTS, fd, bad, 1000));
	SHOW(CALL(GETDENTS, fd, wild, 1000));
	SHOW(CALL(GETDENTS, fd, good, 3));
	SHOW(CALL(GETDENTS, fd, end - 4, 1000));
	long n;
	for (int round = 0; round < 20; round++) {
		char *p = end - 60 - 5 * round; // room for two or more of 24 bytes
		n = CALL(GETDENTS, fd, p, 1000);
		if (n <= 0) break;
		for (long i = 0; i < n; i += *(unsigned short *)(p + i + 16)) {
			seen++;
			if (p[i + 19] >= 'a') mask |= 1 << (p[i + 19] - 'a');
		}
	}
	show("the last", n);
	show("seen", seen);
	show("names", mask);
	CALL(CLOSE, fd);
	for (int i = 0; i < 6; i++) {
		name[sizeof name - 2] = 'a' + i;
		CALL(UNLINK, name);
	}
	SHOW(CALL(RMDIR, dir));
	SHOW(CALL(GETCWD, bad, 4000));
	SHOW(CALL(READLINK, "/proc/self/exe", bad, 10));
	SHOW(CALL(READLINK, bad, good, 10));
	SHOW(CALL(OPEN, bad, 0));
	SHOW(CALL(FSTAT, 0, bad));
}

static void events(void) {
	int p[2], e = CALL(EPOLL, 0), ev[3];
	struct event *at;
	say("events\n");
	CALL(PIPE2, p, 0);
	for (int i = 0; i < 3; i++) {
		ev[i] = CALL(EVENTFD, i + 1, NONBLOCK);
		struct event one = { 1u | (i == 0 ? 1u << 31 : i == 1 ? 1u << 30 : 0), 10 + i }; // edges, one shot, level
		SHOW(CALL(EPOLLCTL, e, 1, ev[i], &one));
	}
	SHOW(CALL(EPOLLCTL, e, 1, p[0], bad));
	SHOW(CALL(EPOLLWAIT, e, bad, 10, 0));
	SHOW(CALL(EPOLLWAIT, e, wild, 10, 0));
	SHOW(CALL(EPOLLWAIT, 99, wild, 10, 0));
	SHOW(CALL(EPOLLWAIT, 99, wild, 0, 0));
	SHOW(CALL(EPOLLWAIT, p[0], good, 1, 0));
	at = (struct event *)(end - sizeof *at);
	SHOW(CALL(EPOLLWAIT, e, at, 10, 0)); // one fits
	show("first", at->data);
	at = (struct event *)good;
	long n = CALL(EPOLLWAIT, e, at, 10, 0), all = 0;
	show("the rest", n);
	for (int i = 0; i < n; i++) all |= 1 << (at[i].data - 10);
	show("they are", all);
	show("again", CALL(EPOLLWAIT, e, at, 10, 0));
	struct pollfd f[2] = { { ev[0], 1, 0 }, { p[0], 1, 0 } };
	SHOW(CALL(POLL, bad, 2, 0));
	SHOW(CALL(POLL, wild, 2, 0));
	SHOW(CALL(POLL, bad, 0, 0));
	SHOW(CALL(POLL, f, 2, 0));
	struct pollfd *fp = (struct pollfd *)(end - 12);
	SHOW(CALL(POLL, fp, 2, 0));
	SHOW(CALL(PPOLL, f, 2, bad, 0, 8));
	SHOW(CALL(PPOLL, f, 2, 0, bad, 8));
	SHOW(CALL(PPOLL, f, 2, 0, good, 7));
	SHOW(CALL(SELECT, 10, bad, 0, 0, 0));
	SHOW(CALL(SELECT, 10, 0, 0, 0, bad));
	CALL(CLOSE, e);
	CALL(READ, ev[0], buf, 8);
	say("counters\n");
	long one = 5;
	CALL(WRITE, ev[0], &one, 8);
	SHOW(CALL(READ, ev[0], bad, 8));
	SHOW(CALL(READ, ev[0], good, 8));
	SHOW(CALL(WRITE, ev[0], bad, 8));
	SHOW(CALL(WRITE, ev[0], good, 7));
	SHOW(CALL(READ, ev[1], end - 4, 8));
	SHOW(CALL(READ, ev[1], good, 8));
	SHOW(CALL(READ, ev[2], good, 4));
	SHOW(CALL(READ, ev[2], bad, 4));
	SHOW(CALL(READ, ev[2], good, 100));
	show("is", *(long *)good);
	int t = CALL(TIMERFD, 1, NONBLOCK);
	struct spec s = { 0, 0, 0, 1 };
	SHOW(CALL(TIMERFDSET, t, 0, &s, bad));
	struct pollfd tf = { t, 1, 0 };
	SHOW(CALL(POLL, &tf, 1, -1));
	SHOW(CALL(READ, t, bad, 8));
	SHOW(CALL(READ, t, good, 8));
	SHOW(CALL(TIMERFDSET, t, 0, bad, 0));
	SHOW(CALL(TIMERFDGET, t, bad));
	CALL(CLOSE, t);
	for (int i = 0; i < 3; i++) CALL(CLOSE, ev[i]);
	CALL(CLOSE, p[0]);
	CALL(CLOSE, p[1]);
}

// seeks asks of every kind of file where it stands.
static void seeks(int asksAll) {
	int p[2], s[2];
	CALL(PIPE2, p, 0);
	CALL(SOCKETPAIR, 1, 1, 0, s);
	struct { const char *name; int fd; } all[] = {
		{ "pipe", p[0] }, { "pipe's other end", p[1] }, { "socket", s[0] }, { "eventfd", CALL(EVENTFD, 0, 0) },
		{ "timerfd", CALL(TIMERFD, 1, 0) }, { "epoll", CALL(EPOLL, 0) }, { "userfaultfd", asksAll ? CALL(USERFAULTFD, 1) : -1 },
		{ "null", CALL(OPEN, "/dev/null", 2) }, { "zero", CALL(OPEN, "/dev/zero", 2) }, { "none", 99 },
	};
	for (int i = 0; i < sizeof all / sizeof *all; i++) {
		int fd = all[i].fd;
		if (fd < 0) continue;
		say(all[i].name);
		say("\n");
		SHOW(CALL(LSEEK, fd, 0, 1));
		SHOW(CALL(LSEEK, fd, 100, 0));
		SHOW(CALL(LSEEK, fd, -100, 0));
		SHOW(CALL(LSEEK, fd, 5, 2));
		SHOW(CALL(LSEEK, fd, 5, 3));
		SHOW(CALL(LSEEK, fd, 5, 9));
		if (same(all[i].name, "userfaultfd")) { // before its handshake
			SHOW(CALL(READ, fd, buf, 32));
			SHOW(CALL(READ, fd, bad, 32));
			SHOW(CALL(READ, fd, wild, 32));
			SHOW(CALL(WRITE, fd, buf, 8));
			SHOW(CALL(PREAD, fd, buf, 32, 0));
			SHOW(CALL(PWRITE, fd, buf, 8, 0));
		} else if (fd > 2 && fd < 99 && !same(all[i].name, "timerfd") && !same(all[i].name, "eventfd") && !same(all[i].name, "epoll")) {
			SHOW(CALL(PREAD, fd, bad, 8, 0));
			SHOW(CALL(PWRITE, fd, bad, 8, 0));
		} else if (fd < 99) {
			SHOW(CALL(PREAD, fd, buf, 4, 0));
			SHOW(CALL(PWRITE, fd, buf, 4, 0));
		}
		if (fd < 99) CALL(CLOSE, fd);
	}
	CALL(CLOSE, s[1]);
}

// answers are calls that write theirs to memory that is not there, and what they
// have done all the same.
static void answers(void) {
	u64 set = 1 << 9, old = 0;
	struct limit l;
	int first = CALL(EVENTFD, 0, 0), p[2];
	say("answers\n");
	CALL(CLOSE, first);
	SHOW(CALL(PIPE2, bad, 0));
	SHOW(CALL(PIPE2, end - 4, 0));
	SHOW(CALL(SOCKETPAIR, 1, 1, 0, bad));
	SHOW(CALL(EVENTFD, 0, 0) - first); // none of them has left a descriptor
	CALL(CLOSE, first);
	SHOW(CALL(SIGPROCMASK, 0, &set, bad, 8));
	SHOW(CALL(SIGPROCMASK, 0, 0, &old, 8));
	show("mask", old);
	SHOW(CALL(SIGPROCMASK, 1, bad, 0, 8));
	SHOW(CALL(SIGPROCMASK, 1, &set, 0, 8));
	struct action a = { (void *)1, 0x04000000, restore, 0 }, b;
	SHOW(CALL(SIGACTION, 10, &a, bad, 8));
	SHOW(CALL(SIGACTION, 10, 0, &b, 8));
	show("handler", (long)b.handler);
	SHOW(CALL(SIGACTION, 10, bad, 0, 8));
	SHOW(CALL(SIGPENDING, bad, 8));
	CALL(GETRLIMIT, 7, &l);
	struct limit less = { 77, l.hard };
	SHOW(CALL(PRLIMIT, 0, 7, &less, bad));
	CALL(GETRLIMIT, 7, &l);
	show("limit", l.soft);
	SHOW(CALL(PRLIMIT, 0, 7, bad, 0));
	SHOW(CALL(GETRLIMIT, 7, bad));
	SHOW(CALL(GETRLIMIT, 99, bad));
	SHOW(CALL(GETTIME, 1, bad));
	SHOW(CALL(GETTIME, 99, bad));
	SHOW(CALL(UNAME, bad));
	SHOW(CALL(NANOSLEEP, bad, 0));
	SHOW(CALL(GETITIMER, 0, bad));
	SHOW(CALL(GETRANDOM, bad, 8, 0));
	SHOW(CALL(GETRANDOM, end - 300, 1000, 0));
	SHOW(CALL(MINCORE, good, PAGE, bad));
	SHOW(CALL(MINCORE, good, PAGE, wild));
	SHOW(CALL(MINCORE, bad + 1, PAGE, wild));
	SHOW(CALL(MINCORE, wild, PAGE, wild));
	long child = CALL(FORK);
	if (child == 0) CALL(EXITGROUP, 3);
	SHOW(CALL(WAIT4, child, bad, 0, 0) == -EFAULT);
	SHOW(CALL(WAIT4, child, 0, 0, 0));
	child = CALL(FORK);
	if (child == 0) CALL(EXITGROUP, 3);
	SHOW(CALL(WAIT4, child, 0, 0, bad));
	SHOW(CALL(WAIT4, child, 0, 0, 0) == child);
}

static long mapped(u64 n) {
	long at = CALL(MMAP, 0, n, 3, 0x22, -1, 0);
	if (at < 0 && at > -4096) return at;
	CALL(MUNMAP, at, n);
	return 0;
}

enum { DATA = 2, SPACE = 9, LOCKED = 8, MLOCK = 149 };

// limits of a process are its own, also while it is in its parent's memory.
static void limits(char *self) {
	struct limit was, now;
	int status = -1;
	static volatile long seen[8];
	say("limits\n");
	for (int which = DATA; which <= SPACE; which += SPACE - DATA) {
		CALL(GETRLIMIT, which, &was);
		struct limit small = { 4 << 20, was.hard };
		long child = CALL(VFORK);
		if (child == 0) {
			seen[0] = CALL(SETRLIMIT, which, &small);
			seen[1] = mapped(64 << 20);
			seen[2] = CALL(GETRLIMIT, which, &now);
			seen[3] = now.soft;
			seen[4] = CALL(PRLIMIT, parent(), which, 0, &now);
			seen[5] = now.soft == was.soft;
			CALL(EXIT, 0);
		}
		for (int i = 0; i < 6; i++) show("child", seen[i]);
		CALL(WAIT4, child, &status, 0, 0);
		show("mapped", mapped(64 << 20));
		CALL(GETRLIMIT, which, &now);
		show("as before", now.soft == was.soft && now.hard == was.hard);
	}
	// Once it has a program of its own, they hold there.
	struct limit small = { 4 << 20, ~0ul };
	char *argv[] = { self, "limited", 0 }, *env[] = { 0 };
	CALL(GETRLIMIT, DATA, &was);
	small.hard = was.hard;
	long child = CALL(VFORK);
	if (child == 0) {
		CALL(SETRLIMIT, DATA, &small);
		CALL(EXECVE, self, argv, env);
		CALL(EXIT, 99);
	}
	CALL(WAIT4, child, &status, 0, 0);
	show("status", status);
	show("mapped", mapped(64 << 20));
	// And one that sets another's, who shares its memory with nobody.
	int p[2], q[2];
	CALL(PIPE2, p, 0);
	CALL(PIPE2, q, 0);
	child = CALL(FORK);
	if (child == 0) {
		CALL(READ, p[0], buf, 1);
		show("another's", mapped(64 << 20));
		CALL(EXIT, 0);
	}
	show("set", CALL(PRLIMIT, child, DATA, &small, 0));
	CALL(WRITE, p[1], buf, 1);
	CALL(WAIT4, child, &status, 0, 0);
	show("mapped", mapped(64 << 20));
}

// fromStdin reads 10 000 bytes, some of them to where there is no memory.
static void fromStdin(void) {
	long n = 0, got;
	SHOW(CALL(READ, 0, bad, 100));
	SHOW(CALL(READ, 0, end - 50, 100) > 0 ? n = 50 : 0);
	if (n > 0) memcpy(buf, end - 50, n);
	SHOW(got = CALL(READ, 0, end - 5000, 9000));
	if (got > 0) memcpy(buf + n, end - 5000, got), n += got;
	SHOW(CALL(READ, 0, bad, 100));
	while ((got = CALL(READ, 0, buf + n, sizeof buf - n)) > 0) n += got;
	show("all", n);
	show("sum", sum(buf, n));
}

int program(int argc, char **argv) {
	if (argc > 1 && same(argv[1], "limited")) return mapped(64 << 20) == -ENOMEM ? 7 : 8;
	int asksAll = argc < 2 || !same(argv[1], "nouserfaultfd");
	good = (char *)CALL(MMAP, 0x50000000, 9 * PAGE, 3, 0x32, -1, 0);
	end = good + 8 * PAGE;
	CALL(MUNMAP, end, PAGE);
	if (argc > 1 && same(argv[1], "stdin")) {
		fromStdin();
		return 0;
	}
	int p[2], s[2];
	CALL(PIPE2, p, 0);
	CALL(SOCKETPAIR, 1, 1, 0, s);
	reads("pipe", p[0], p[1]);
	reads("socket", s[0], s[1]);
	writes("to a pipe", p[0], p[1]);
	writes("to a socket", s[0], s[1]);
	SHOW(CALL(SENDTO, s[0], bad, 10, 0, 0, 0));
	SHOW(CALL(SENDTO, s[0], end - 4, 10, 0x40, 0, 0));
	SHOW(waiting(s[1]));
	SHOW(CALL(SENDTO, s[0], good, 10, 0x40, 0, 0));
	SHOW(CALL(RECVFROM, s[1], bad, 10, 0, 0, 0));
	SHOW(CALL(RECVFROM, s[1], end - 4, 10, 0x40, 0, 0));
	SHOW(waiting(s[1]));
	SHOW(CALL(RECVFROM, s[1], good, 10, 0x40, 0, 0));
	full();
	files();
	entries();
	events();
	seeks(asksAll);
	answers();
	limits(argv[0]);
	return 0;
}
