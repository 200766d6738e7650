// Calls that programs make now and then, with what they answer and leave behind: limits
// on files, priorities, what a process is told of itself, other processes' memory, room
// for files, messages over sockets, pipes with names, locks. It says the same under
// Linux. Its argument is a directory that is not there, in /tmp.
#include "guest.h"

enum {
	OPEN = 2, LSEEK = 8, PWRITE = 18, IOCTL = 16, POLL = 7, SENDTO = 44, RECVFROM = 45, SENDMSG = 46, RECVMSG = 47, SHUTDOWN = 48, SOCKETPAIR = 53,
	SETSOCKOPT = 54, GETSOCKOPT = 55, FCNTL = 72, FLOCK = 73, TRUNCATE = 76, FTRUNCATE = 77, MKDIR = 83, RMDIR = 84, UNLINK = 87,
	MKNOD = 133, PERSONALITY = 135, GETPRIORITY = 140, SETPRIORITY = 141, PRCTL = 157, SETRLIMIT = 160, FALLOCATE = 285,
	VMREADV = 310, VMWRITEV = 311, MEMFD = 319, FSTAT = 5, DUP = 32
};
enum { PAGE = 4096, CREAT = 0102, NONBLOCK = 04000, FIFO = 0010600 };

struct vec { void *base; u64 length; };
struct limit { u64 soft, hard; };
struct pollfd { int fd; short events, revents; };
struct msg { void *name; u64 nameLen; struct vec *vecs; u64 count; void *control; u64 controlLen; int flags; };
struct lock { short type, whence; int pad; long start, length; int pid; };

static char buf[5 * PAGE], path[256];
static int signals[65];
static void note(int sig) { signals[sig]++; }

static void show(const char *what, long v) {
	static char line[256]; // in one piece, since each is an exit
	char digits[24], *p = line;
	int i = 0;
	u64 n = v < 0 ? -v : v;
	while (*what && p < line + sizeof line - 32) *p++ = *what++;
	*p++ = ' ';
	if (v < 0) *p++ = '-';
	do digits[i++] = '0' + n % 10; while (n /= 10);
	while (i > 0) *p++ = digits[--i];
	*p++ = '\n';
	CALL(WRITE, 1, line, p - line);
}
#define SHOW(call) show(#call, call)

static const char *at(const char *dir, const char *name) {
	char *p = path;
	while (*dir) *p++ = *dir++;
	*p++ = '/';
	while ((*p++ = *name++));
	return path;
}

static long size(int fd) { return CALL(LSEEK, fd, 0, 2); }

// child runs f in a process of its own and tells how it ended.
#define CHILD(what, ...) do { long child = CALL(FORK); int status = 0; \
	if (child == 0) { __VA_ARGS__; CALL(EXITGROUP, 0); } \
	CALL(WAIT4, child, &status, 0, 0); show(what, status); } while (0)

static void fileLimits(const char *dir) {
	int fd = CALL(OPEN, at(dir, "limited"), CREAT, 0600);
	handle(25, note, 0); // SIGXFSZ
	struct limit l = { 10000, 10000 };
	SHOW(CALL(SETRLIMIT, 1, &l));
	SHOW(CALL(WRITE, fd, buf, 8192));
	SHOW(CALL(WRITE, fd, buf, 8192));
	SHOW(CALL(WRITE, fd, buf, 8192));
	SHOW(CALL(WRITE, fd, buf, 0));
	SHOW(CALL(PWRITE, fd, buf, 10, 9995));
	SHOW(CALL(PWRITE, fd, buf, 10, 10000));
	SHOW(CALL(FTRUNCATE, fd, 10001));
	SHOW(CALL(FTRUNCATE, fd, 10000));
	SHOW(CALL(TRUNCATE, at(dir, "limited"), 20000));
	SHOW(CALL(FALLOCATE, fd, 0, 0, 10001));
	SHOW(CALL(FALLOCATE, fd, 0, 5000, 5000));
	SHOW(CALL(FALLOCATE, fd, 1, 5000, 50000));
	SHOW(signals[25]);
	SHOW(size(fd));
	int memory = CALL(MEMFD, "x", 0);
	SHOW(CALL(FTRUNCATE, memory, 20000));
	int pipe[2];
	CALL(PIPE, pipe);
	SHOW(CALL(WRITE, pipe[1], buf, sizeof buf)); // no file
	CHILD("killed at the limit", handle(25, 0, 0), CALL(PWRITE, fd, buf, 1, 99999));
	CALL(CLOSE, fd);
	CALL(UNLINK, at(dir, "limited"));
	CALL(CLOSE, memory);
	CALL(CLOSE, pipe[0]);
	CALL(CLOSE, pipe[1]);
}

static void room(void) {
	int fd = CALL(MEMFD, "room", 0);
	for (int i = 0; i < sizeof buf; i++) buf[i] = i % 251 + 1;
	SHOW(CALL(WRITE, fd, buf, sizeof buf));
	char *p = (char *)CALL(MMAP, 0, sizeof buf, 3, 1, fd, 0);
	SHOW(CALL(FALLOCATE, fd, 2, 0, PAGE));     // a hole wants KEEP_SIZE
	SHOW(CALL(FALLOCATE, fd, 3, PAGE + 100, PAGE));
	long left = 0;
	for (int i = 0; i < sizeof buf; i++) left += p[i] != 0;
	show("bytes that are not zero", left);
	SHOW(p[PAGE + 99] != 0 && p[PAGE + 100] == 0 && p[2 * PAGE + 99] == 0 && p[2 * PAGE + 100] != 0);
	SHOW(CALL(FALLOCATE, fd, 3, 4 * PAGE, 1 << 20)); // beyond the end
	SHOW(size(fd));
	SHOW(CALL(FALLOCATE, fd, 0, 0, 100 * PAGE));
	SHOW(size(fd));
	SHOW(CALL(FALLOCATE, fd, 0, 0, 0));
	SHOW(CALL(FALLOCATE, fd, 0, -1, 1));
	SHOW(CALL(FALLOCATE, fd, 0x40, 0, 1) < 0);
	SHOW(CALL(FALLOCATE, fd, 0, 1, ~0ul >> 1));
	SHOW(CALL(MUNMAP, p, sizeof buf));
	CALL(CLOSE, fd);
	int pipe[2];
	CALL(PIPE, pipe);
	SHOW(CALL(FALLOCATE, pipe[1], 0, 0, 1));
	SHOW(CALL(FALLOCATE, pipe[0], 0, 0, 1));
	CALL(CLOSE, pipe[0]);
	CALL(CLOSE, pipe[1]);
}

static void priorities(void) {
	SHOW(CALL(SETPRIORITY, 0, 0, 5));
	SHOW(CALL(GETPRIORITY, 0, 0));
	CHILD("a child's is", show("inherited", CALL(GETPRIORITY, 0, 0)));
	SHOW(CALL(SETPRIORITY, 0, 0, 99));
	SHOW(CALL(GETPRIORITY, 0, 0));
	SHOW(CALL(SETPRIORITY, 9, 0, 0));
	SHOW(CALL(GETPRIORITY, -1, 0));
	SHOW(CALL(SETPRIORITY, 0, 99999999, 0));
	SHOW(CALL(GETPRIORITY, 1, 99999999));
}

static void self(void) {
	u32 v = 77;
	SHOW(CALL(PRCTL, 1, 15));      // PDEATHSIG
	SHOW(CALL(PRCTL, 2, &v)), SHOW(v);
	SHOW(CALL(PRCTL, 1, 99));
	CHILD("of a child", CALL(PRCTL, 2, &v), show("is", v));
	SHOW(CALL(PRCTL, 1, 0));
	SHOW(CALL(PRCTL, 36, 1));      // CHILD_SUBREAPER
	SHOW(CALL(PRCTL, 37, &v)), SHOW(v);
	CHILD("of a child", CALL(PRCTL, 37, &v), show("is", v));
	SHOW(CALL(PRCTL, 3)), SHOW(CALL(PRCTL, 4, 0)), SHOW(CALL(PRCTL, 3)), SHOW(CALL(PRCTL, 4, 7)), SHOW(CALL(PRCTL, 4, 1)); // DUMPABLE
	SHOW(CALL(PRCTL, 8, 1)), SHOW(CALL(PRCTL, 7)), SHOW(CALL(PRCTL, 8, 2)), SHOW(CALL(PRCTL, 8, 0)); // KEEPCAPS
	SHOW(CALL(PRCTL, 39, 0, 0, 0, 0)), SHOW(CALL(PRCTL, 38, 0, 0, 0, 0)), SHOW(CALL(PRCTL, 38, 1, 0, 0, 0)), SHOW(CALL(PRCTL, 39, 0, 0, 0, 0));
	SHOW(CALL(PRCTL, 29, 1234)), SHOW(CALL(PRCTL, 30)); // TIMERSLACK
	SHOW(CALL(PRCTL, 41, 1, 0, 0, 0)), SHOW(CALL(PRCTL, 42, 0, 0, 0, 0)), SHOW(CALL(PRCTL, 41, 0, 0, 0, 0)); // THP_DISABLE
	SHOW(CALL(PRCTL, 0x12345));
	SHOW(CALL(PERSONALITY, 0xffffffff)), SHOW(CALL(PERSONALITY, 0x40000)), SHOW(CALL(PERSONALITY, 0xffffffff)), SHOW(CALL(PERSONALITY, 0));
	// An orphan goes to the subreaper.
	int pipe[2];
	CALL(PIPE, pipe);
	if (CALL(FORK) == 0) {
		if (CALL(FORK) == 0) {
			char c;
			CALL(CLOSE, pipe[1]);
			CALL(READ, pipe[0], &c, 1); // until its parent has been reaped
			CALL(EXITGROUP, 7);
		}
		CALL(EXITGROUP, 5);
	}
	int status = 0;
	CALL(WAIT4, -1, &status, 0, 0);
	show("parent", status);
	CALL(CLOSE, pipe[1]);
	CALL(WAIT4, -1, &status, 0, 0);
	show("orphan", status);
	SHOW(CALL(WAIT4, -1, &status, 0, 0));
	CALL(CLOSE, pipe[0]);
	CALL(PRCTL, 36, 0);
	// One that sends nothing at its end is waited for by __WCLONE alone.
	long quiet = CALL(CLONE, 0, 0, 0, 0, 0);
	if (quiet == 0) CALL(EXITGROUP, 3);
	SHOW(CALL(WAIT4, quiet, &status, 0, 0));
	SHOW(CALL(WAIT4, quiet, &status, 0x80000000u, 0) == quiet);
	SHOW(status);
}

static void otherMemory(void) {
	char *shared = (char *)CALL(MMAP, 0, 2 * PAGE, 3, 0x22, -1, 0);
	CALL(MUNMAP, shared + PAGE, PAGE);
	for (int i = 0; i < PAGE; i++) shared[i] = i;
	long child = CALL(FORK);
	if (child == 0) for (;;) CALL(PAUSE);
	for (int i = 0; i < PAGE; i++) shared[i] = 0; // ours alone
	struct vec local[2] = { { buf, 10 }, { buf + 100, 90 } }, remote[2] = { { shared + 7, 60 }, { shared + PAGE - 10, 20 } };
	SHOW(CALL(VMREADV, child, local, 2, remote, 1, 0));
	SHOW(buf[0]), SHOW(buf[9]), SHOW(buf[100]), SHOW(buf[149]);
	SHOW(CALL(VMREADV, child, local, 2, remote + 1, 1, 0)); // to the end of what is there, or less
	remote[0].base = shared + PAGE;
	SHOW(CALL(VMREADV, child, local, 2, remote, 1, 0));
	remote[0].base = shared + 50;
	buf[0] = 99;
	SHOW(CALL(VMWRITEV, child, local, 1, remote, 1, 0));
	SHOW(shared[50]);
	buf[0] = 0;
	SHOW(CALL(VMREADV, child, local, 1, remote, 1, 0)), SHOW(buf[0]);
	SHOW(CALL(VMREADV, child, local, 1, remote, 1, 1));
	SHOW(CALL(VMREADV, child, (void *)8, 1, remote, 1, 0));
	SHOW(CALL(VMREADV, child, local, 1, (void *)8, 1, 0));
	SHOW(CALL(VMREADV, child, local, 2000, remote, 1, 0));
	SHOW(CALL(VMREADV, child, local, 0, remote, 1, 0));
	SHOW(CALL(VMREADV, 99999999, local, 1, remote, 1, 0));
	SHOW(CALL(VMWRITEV, pid(), local, 1, remote, 1, 0));
	SHOW(shared[50]);
	CALL(KILL, child, 9);
	CALL(WAIT4, child, 0, 0, 0);
	SHOW(CALL(VMREADV, child, local, 1, remote, 1, 0));
	CALL(MUNMAP, shared, PAGE);
}

// control lays out a message's descriptors.
static u64 control(u64 *c, int *fds, int n) {
	c[0] = 16 + 4 * n;
	c[1] = 1ul << 32 | 1; // SOL_SOCKET, SCM_RIGHTS
	for (int i = 0; i < n; i++) ((int *)(c + 2))[i] = fds[i];
	return c[0];
}

static short ready(int fd) {
	struct pollfd p = { fd, 0x2005, 0 };
	CALL(POLL, &p, 1, 0);
	return p.revents;
}

static void messages(void) {
	enum { STREAM = 1, DGRAM = 2, SEQPACKET = 5, PEEK = 2, TRUNC = 0x20, DONTWAIT = 0x40, WAITALL = 0x100, NOSIGNAL = 0x4000, CLOEXEC = 0x40000000 };
	handle(13, note, 0); // SIGPIPE
	for (int type = STREAM; type <= SEQPACKET; type += type == DGRAM ? 3 : 1) {
		int s[2], value = 0, length = 4, pipe[2], got[4] = { -1, -1, -1, -1 };
		u64 c[16] = { 0 };
		show("type", type);
		SHOW(CALL(SOCKETPAIR, 1, type, 0, s));
		SHOW(CALL(GETSOCKOPT, s[0], 1, 3, &value, &length)), SHOW(value == type);
		u32 cred[3] = { 0 };
		length = 12;
		SHOW(CALL(GETSOCKOPT, s[1], 1, 17, cred, &length)), SHOW(cred[0] == pid());
		SHOW(CALL(SENDTO, s[0], "one", 3, 0, 0, 0)), SHOW(CALL(SENDTO, s[0], "two", 3, NOSIGNAL, 0, 0));
		SHOW(CALL(RECVFROM, s[1], buf, 2, PEEK, 0, 0)), SHOW(buf[1]);
		SHOW(CALL(RECVFROM, s[1], buf, 2, 0, 0, 0));
		SHOW(CALL(RECVFROM, s[1], buf, 100, DONTWAIT, 0, 0)), SHOW(buf[0]);
		SHOW(CALL(RECVFROM, s[1], buf, 100, DONTWAIT, 0, 0));
		SHOW(CALL(SENDTO, s[0], "longer", 6, 0, 0, 0));
		SHOW(CALL(RECVFROM, s[1], buf, 3, TRUNC | PEEK, 0, 0));
		SHOW(CALL(READ, s[1], buf, 100));
		if (type != STREAM) {
			SHOW(CALL(SENDTO, s[0], buf, 0, 0, 0, 0));
			SHOW(ready(s[1]));
			SHOW(CALL(RECVFROM, s[1], buf, 9, DONTWAIT, 0, 0));
			char *large = (char *)CALL(MMAP, 0, 1 << 20, 3, 0x22, -1, 0);
			SHOW(CALL(WRITE, s[0], large, 1 << 20));
			SHOW(CALL(WRITE, s[0], large, 100000));
			SHOW(CALL(READ, s[1], large, 1 << 20));
			CALL(MUNMAP, large, 1 << 20);
		}
		// A descriptor goes along, and is another one of the same description.
		CALL(PIPE, pipe);
		struct vec vecs[2] = { { "ab", 2 }, { "cd", 2 } };
		struct msg m = { 0, 0, vecs, 2, c, control(c, pipe, 2), 0 };
		SHOW(CALL(SENDMSG, s[0], &m, 0));
		SHOW(CALL(SENDTO, s[0], "behind", 6, 0, 0, 0));
		CALL(CLOSE, pipe[0]), CALL(CLOSE, pipe[1]);
		memset(c, 0, sizeof c);
		struct vec in[2] = { { buf, 3 }, { buf + 100, 50 } };
		struct msg r = { 0, 0, in, 2, c, sizeof c, 0 };
		SHOW(CALL(RECVMSG, s[1], &r, CLOEXEC));
		SHOW(r.controlLen), SHOW(c[0]), SHOW(c[1] == (1ul << 32 | 1)), SHOW(r.flags & 0x28), SHOW(buf[100]);
		memcpy(got, c + 2, 8);
		SHOW(CALL(FCNTL, got[0], 1));
		SHOW(CALL(WRITE, got[1], "via", 3)), SHOW(CALL(READ, got[0], buf, 9));
		CALL(CLOSE, got[0]);
		SHOW(CALL(WRITE, got[1], "x", 1)), SHOW(signals[13]);
		// Without room for them they are lost; nobody else has an end of this pipe then.
		CALL(CLOSE, got[1]);
		CALL(PIPE, pipe);
		m.controlLen = control(c, pipe + 1, 1);
		SHOW(CALL(SENDMSG, s[0], &m, 0));
		CALL(CLOSE, pipe[1]);
		SHOW(ready(pipe[0]));
		r.controlLen = 0;
		CALL(RECVFROM, s[1], buf, 6, 0, 0, 0); // "behind"
		SHOW(CALL(RECVMSG, s[1], &r, 0)), SHOW(r.flags & 8);
		SHOW(ready(pipe[0]));
		CALL(CLOSE, pipe[0]);
		// Read by who does not know of them, they are lost too.
		CALL(PIPE, pipe);
		m.controlLen = control(c, pipe + 1, 1);
		SHOW(CALL(SENDMSG, s[0], &m, 0)), SHOW(CALL(CLOSE, pipe[1]));
		SHOW(CALL(READ, s[1], buf, 2)), SHOW(ready(pipe[0]));
		if (type == STREAM) SHOW(CALL(READ, s[1], buf, 2)), SHOW(ready(pipe[0]));
		CALL(CLOSE, pipe[0]);
		int none = 99;
		m.controlLen = control(c, &none, 1);
		SHOW(CALL(SENDMSG, s[0], &m, 0));
		c[0] = 5, m.controlLen = 20;
		SHOW(CALL(SENDMSG, s[0], &m, 0));
		SHOW(CALL(SENDMSG, s[0], 8, 0)), SHOW(CALL(RECVMSG, s[0], 8, 0)), SHOW(CALL(RECVMSG, 0x7fff, &r, 0));
		// Who waits for so long only.
		long wait[2] = { 0, 20000 };
		SHOW(CALL(SETSOCKOPT, s[1], 1, 20, wait, 16));
		SHOW(CALL(READ, s[1], buf, 1)), SHOW(CALL(RECVFROM, s[1], buf, 1, 0, 0, 0));
		wait[1] = 5000000;
		SHOW(CALL(SETSOCKOPT, s[1], 1, 20, wait, 16));
		// Who has stopped reading.
		int before = signals[13];
		SHOW(CALL(SHUTDOWN, s[1], 0));
		SHOW(ready(s[1])), SHOW(ready(s[0]) & 4);
		SHOW(CALL(READ, s[1], buf, 1));
		SHOW(CALL(SENDTO, s[0], "x", 1, NOSIGNAL, 0, 0)), SHOW(signals[13] - before);
		if (type != DGRAM) SHOW(CALL(WRITE, s[0], "x", 1)), SHOW(signals[13] - before);
		SHOW(CALL(WRITE, s[1], "y", 1)), SHOW(CALL(READ, s[0], buf, 9));
		CALL(CLOSE, s[0]), CALL(CLOSE, s[1]);
	}
	int s[2], value = 4;
	SHOW(CALL(SOCKETPAIR, 1, STREAM, 0, s));
	if (CALL(FORK) == 0) {
		for (int i = 0; i < 4; i++) CALL(WRITE, s[0], "1234" + i, 1);
		CALL(EXITGROUP, 0);
	}
	SHOW(CALL(RECVFROM, s[1], buf, 4, WAITALL, 0, 0)), SHOW(buf[3]);
	CALL(WAIT4, -1, 0, 0, 0);
	// An end that is under way to itself: nobody can ever take it.
	u64 c[4];
	struct vec one = { "x", 1 };
	struct msg m = { 0, 0, &one, 1, c, control(c, s + 1, 1), 0 };
	SHOW(CALL(SENDMSG, s[0], &m, 0));
	CALL(CLOSE, s[0]), CALL(CLOSE, s[1]);
	SHOW(value);
}

static void names(const char *dir) {
	char *fifo = path;
	at(dir, "fifo");
	SHOW(CALL(MKNOD, fifo, FIFO, 0)), SHOW(CALL(MKNOD, fifo, FIFO, 0));
	SHOW(CALL(OPEN, fifo, 1 | NONBLOCK, 0));
	int r = CALL(OPEN, fifo, NONBLOCK, 0);
	SHOW(r >= 0);
	SHOW(ready(r)), SHOW(CALL(READ, r, buf, 1));
	int w = CALL(OPEN, fifo, 1, 0);
	SHOW(w >= 0), SHOW(CALL(READ, r, buf, 1));
	SHOW(CALL(WRITE, w, "abc", 3)), SHOW(ready(r)), SHOW(CALL(READ, r, buf, 9));
	int second = CALL(OPEN, fifo, 1 | NONBLOCK, 0);
	CALL(CLOSE, w);
	SHOW(CALL(READ, r, buf, 1));
	CALL(CLOSE, second);
	SHOW(CALL(READ, r, buf, 1)), SHOW(ready(r));
	CALL(CLOSE, r);
	int both = CALL(OPEN, fifo, 2, 0);
	SHOW(CALL(WRITE, both, "self", 4)), SHOW(CALL(READ, both, buf, 9)), SHOW(ready(both));
	CALL(CLOSE, both);
	u32 st[36];
	long child = CALL(FORK);
	if (child == 0) {
		w = CALL(OPEN, fifo, 1, 0); // waits for a reader
		CALL(WRITE, w, "from a child", 12);
		CALL(EXITGROUP, 0);
	}
	r = CALL(OPEN, fifo, 0, 0);
	SHOW(CALL(READ, r, buf, 99)), SHOW(CALL(READ, r, buf, 99));
	SHOW(CALL(FSTAT, r, st)), SHOW(st[6] == (FIFO & ~022));
	CALL(WAIT4, child, 0, 0, 0);
	CALL(CLOSE, r);
	// A signal ends the wait for the other end: the first that finds it waiting.
	struct { long is, iu, vs, vu; } often = { 0, 50000, 0, 50000 }, off = { 0 };
	handle(14, note, 0);
	CALL(SETITIMER, 0, &often, 0);
	SHOW(CALL(OPEN, fifo, 0, 0));
	CALL(SETITIMER, 0, &off, 0);
	SHOW(signals[14] > 0);
	SHOW(CALL(UNLINK, fifo)), SHOW(CALL(OPEN, fifo, 0, 0));
	SHOW(CALL(MKNOD, at(dir, "plain"), 0100640, 0)), SHOW(CALL(UNLINK, path)), SHOW(CALL(MKNOD, at(dir, "what"), 0170000, 0));
	int fd = CALL(OPEN, at(dir, "file"), CREAT, 0600);
	SHOW(CALL(OPEN, path, 010200000, 0)); // O_PATH, O_DIRECTORY
	CALL(CLOSE, fd);
	CALL(UNLINK, path);
}

static void locks(const char *dir) {
	enum { RD = 0, WR = 1, UN = 2, GETLK = 5, SETLK = 6, SETLKW = 7, OFDGET = 36, OFDSET = 37 };
	int fd = CALL(OPEN, at(dir, "locked"), CREAT, 0600), go[2], gone[2];
	char c;
	struct lock l = { WR, 0, 0, 100, 50, 0 };
	SHOW(CALL(FCNTL, fd, SETLK, &l));
	CHILD("another's", {
		struct lock m = { RD, 0, 0, 0, 100, 0 };
		SHOW(CALL(FCNTL, fd, SETLK, &m));
		m.length = 101;
		SHOW(CALL(FCNTL, fd, SETLK, &m));
		SHOW(CALL(FCNTL, fd, GETLK, &m)), SHOW(m.type), SHOW(m.start), SHOW(m.length), SHOW(m.pid == parent());
		m = (struct lock){ WR, 0, 0, 150, 0, 0 };
		SHOW(CALL(FCNTL, fd, SETLK, &m));
	});
	l = (struct lock){ UN, 0, 0, 120, 10, 0 };
	SHOW(CALL(FCNTL, fd, SETLK, &l)); // which leaves two
	l = (struct lock){ RD, 0, 0, 140, 10, 0 };
	SHOW(CALL(FCNTL, fd, SETLK, &l));
	CHILD("another's", {
		struct lock m = { WR, 0, 0, 120, 10, 0 };
		SHOW(CALL(FCNTL, fd, SETLK, &m));
		m = (struct lock){ RD, 0, 0, 145, 1, 0 };
		SHOW(CALL(FCNTL, fd, SETLK, &m));
		m = (struct lock){ WR, 0, 0, 110, 100, 0 };
		SHOW(CALL(FCNTL, fd, GETLK, &m)), SHOW(m.start), SHOW(m.length);
	});
	l = (struct lock){ RD, 0, 0, 0, 0, 0 };
	SHOW(CALL(FCNTL, fd, GETLK, &l)), SHOW(l.type); // one's own are in nobody's way
	l = (struct lock){ 9, 0, 0, 0, 0, 0 };
	SHOW(CALL(FCNTL, fd, SETLK, &l));
	l = (struct lock){ WR, 0, 0, -5, 0, 0 };
	SHOW(CALL(FCNTL, fd, SETLK, &l));
	SHOW(CALL(FCNTL, fd, SETLK, 8));
	// Any descriptor of the file that is closed takes them all.
	int again = CALL(OPEN, path, 0, 0);
	CALL(CLOSE, again);
	CHILD("none left", struct lock m = { WR }; SHOW(CALL(FCNTL, fd, SETLK, &m)));
	// Who waits gets it when the other ends, and of two who wait for each other one is told.
	CALL(PIPE, go), CALL(PIPE, gone);
	long child = CALL(FORK);
	if (child == 0) {
		l = (struct lock){ WR, 0, 0, 0, 1, 0 };
		CALL(FCNTL, fd, SETLKW, &l);
		CALL(WRITE, go[1], "x", 1);
		CALL(READ, gone[0], &c, 1);
		l.start = 1;
		long got = CALL(FCNTL, fd, SETLKW, &l);
		CALL(EXITGROUP, got != 0);
	}
	l = (struct lock){ WR, 0, 0, 1, 1, 0 };
	SHOW(CALL(FCNTL, fd, SETLK, &l));
	CALL(READ, go[0], &c, 1);
	CALL(WRITE, gone[1], "x", 1);
	l.start = 0;
	long mine = CALL(FCNTL, fd, SETLKW, &l);
	l = (struct lock){ UN };
	CALL(FCNTL, fd, SETLK, &l);
	int status = 0;
	CALL(WAIT4, child, &status, 0, 0);
	SHOW((mine == -35) + (status == 256));
	// A description's own are in the way of others of the same process.
	int other = CALL(OPEN, path, 2, 0);
	l = (struct lock){ WR };
	SHOW(CALL(FCNTL, fd, OFDSET, &l)), SHOW(CALL(FCNTL, other, OFDSET, &l)), SHOW(CALL(FCNTL, other, SETLK, &l));
	SHOW(CALL(FCNTL, other, OFDGET, &l)), SHOW(l.pid), SHOW(l.type);
	SHOW(CALL(FCNTL, other, OFDSET, &l));
	l = (struct lock){ UN };
	SHOW(CALL(FCNTL, fd, OFDSET, &l));
	// Of the whole file, and by the description: a copy of it has the same.
	SHOW(CALL(FLOCK, fd, 2)), SHOW(CALL(FLOCK, other, 5)), SHOW(CALL(FLOCK, fd, 1)), SHOW(CALL(FLOCK, other, 5)), SHOW(CALL(FLOCK, other, 6));
	// Two who share it and want it alone: who asks gives up its share.
	SHOW(CALL(FLOCK, other, 5)), SHOW(CALL(FLOCK, fd, 6)), SHOW(CALL(FLOCK, other, 6)), SHOW(CALL(FLOCK, fd, 5)), SHOW(CALL(FLOCK, other, 8));
	SHOW(CALL(FLOCK, fd, 2));
	int copy = CALL(DUP, fd);
	CALL(CLOSE, fd);
	SHOW(CALL(FLOCK, other, 6));
	CALL(CLOSE, copy);
	SHOW(CALL(FLOCK, other, 6)), SHOW(CALL(FLOCK, other, 8)), SHOW(CALL(FLOCK, other, 3)), SHOW(CALL(FLOCK, 99, 2));
	CALL(CLOSE, other);
	CALL(UNLINK, path);
}

// What the unit of numbers with a point in them objects to.
static volatile int code;
static long resume[8];
__attribute__((noinline, returns_twice)) static long mark(void) { return __builtin_setjmp((void **)resume); }
static void caught(int sig, struct info *i) {
	code = i->err * 0 + ((int *)i)[2];
	u64 unblock = ~0ul;
	CALL(SIGPROCMASK, 1, &unblock, 0, 8);
	__builtin_longjmp((void **)resume, 1);
}
#define RAISES(what, ...) do { code = -1; if (!__builtin_setjmp((void **)resume)) { __VA_ARGS__; } \
	u32 clean = 0x1f80; __asm__ volatile("fninit; ldmxcsr %0" :: "m"(clean)); show(what, code); } while (0)

static void unmask(int bit) {
	u32 v = 0x1f80 & ~(128 << bit);
	__asm__ volatile("ldmxcsr %0" :: "m"(v));
}

static void numbers(void) {
	volatile double zero = 0, one = 1, huge = 1e308, tiny = 1e-308, x;
	volatile int i = 1, none = 0;
	handle(8, caught, 4);
	RAISES("division of whole numbers", i /= none);
	RAISES("nothing over nothing", unmask(0); x = zero / zero);
	RAISES("division", unmask(2); x = one / zero);
	RAISES("overflow", unmask(3); x = huge * huge);
	RAISES("underflow", unmask(4); x = tiny * tiny);
	RAISES("inexact", unmask(5); x = one / 3);
	unsigned short control = 0x37f & ~4;
	RAISES("the old unit's division", __asm__ volatile("fldcw %0; fld1; fldz; fdivrp; fwait" :: "m"(control)));
	control = 0x37f & ~1;
	RAISES("the old unit's nothing", __asm__ volatile("fldcw %0; fldz; fldz; fdivrp; fwait" :: "m"(control)));
}

int program(int argc, char **argv) {
	WANT(argc == 2 && CALL(MKDIR, argv[1], 0700) == 0);
	numbers();
	room();
	self();
	otherMemory();
	messages();
	names(argv[1]);
	locks(argv[1]);
	priorities();
	fileLimits(argv[1]);
	WANT(CALL(RMDIR, argv[1]) == 0);
	return 0;
}
