// Calls on files, each with its result on a line: the same here and under
// Linux itself. It wants a directory to play in as argv[1], with a file "f"
// (10 bytes), a link "l" to it and a directory "d" in it.
#include "guest.h"

enum {
	OPEN = 2, STAT = 4, FSTAT = 5, LSTAT = 6, POLL = 7, LSEEK = 8, IOCTL = 16, PREAD = 17, PWRITE = 18, READV = 19, WRITEV = 20,
	ACCESS = 21, SELECT = 23, DUP = 32, DUP2 = 33, SENDFILE = 40, FCNTL = 72, GETCWD = 79, CHDIR = 80, FCHDIR = 81, READLINK = 89,
	UMASK = 95, GETDENTS = 217, OPENAT = 257, FSTATAT = 262, FACCESSAT = 269, PPOLL = 271, DUP3 = 292, PIPE2 = 293, PREADV = 295,
	GETRANDOM = 318, STATX = 332, CLOSERANGE = 436, CLOCKGETTIME = 228, FUTEX = 202, SETPGID = 109, GETPGID = 121, GETSID = 124,
	SETSID = 112, PRLIMIT = 302, UNAME = 63, TIMES = 100, GETITIMER = 36, TKILL = 200
};

static void show(const char *what, long v) { say(what); say(" "); sayNumber(v); say("\n"); }
#define SHOW(call) show(#call, call)

static char buf[8192];
static int fd[2], status;
static struct { int fd; short events, revents; } p[3];
static struct { char *base; u64 len; } iov[3] = { { buf, 3 }, { 0, 0 }, { buf + 100, 4 } };
static struct { long s, n; } shortly = { 0, 1000000 }, bad = { 0, 2000000000 }, never = { -1, 0 };
static u64 bits;

static void files(void) {
	long f = CALL(OPEN, "f", 0), d = CALL(OPEN, "d", 0x10000);
	SHOW(f); SHOW(d);
	SHOW(CALL(OPEN, "nosuch", 0)); SHOW(CALL(OPEN, "f", 0x10000)); SHOW(CALL(OPEN, "l", 0x20000)); SHOW(CALL(OPEN, "d", 1));
	SHOW(CALL(OPEN, "f/x", 0)); SHOW(CALL(OPEN, "", 0)); SHOW(CALL(OPEN, 8, 0)); SHOW(CALL(OPEN, "./d/../l", 0));
	SHOW(CALL(OPEN, "f", 0xc1)); SHOW(CALL(OPENAT, d, "../f", 0)); SHOW(CALL(OPENAT, f, "x", 0)); SHOW(CALL(OPENAT, 99, "x", 0));
	SHOW(CALL(READ, f, buf, 4)); SHOW(CALL(LSEEK, f, 0, 1)); SHOW(CALL(LSEEK, f, -20, 1)); SHOW(CALL(LSEEK, f, 5, 2)); SHOW(CALL(LSEEK, f, 0, 9));
	SHOW(CALL(READ, f, buf, 4)); SHOW(CALL(PREAD, f, buf, 100, 3)); SHOW(CALL(PREAD, f, buf, 100, -1)); SHOW(CALL(PREAD, f, 8, 100, 0));
	SHOW(CALL(PWRITE, f, buf, 1, 0)); SHOW(CALL(WRITE, f, buf, 1)); SHOW(CALL(READ, d, buf, 1)); SHOW(CALL(READ, 99, buf, 1));
	SHOW(CALL(LSEEK, f, 0, 0)); SHOW(CALL(READV, f, iov, 3)); SHOW(CALL(READV, f, iov, 1025)); SHOW(CALL(READV, f, 8, 1)); SHOW(CALL(PREADV, f, iov, 3, 8));
	SHOW(CALL(FSTAT, f, buf)); SHOW(*(long *)(buf + 48)); SHOW(CALL(FSTAT, 99, buf)); SHOW(CALL(FSTAT, f, 8));
	SHOW(CALL(LSTAT, "l", buf)); SHOW(*(u32 *)(buf + 24) & 0170000); SHOW(CALL(STAT, "l", buf)); SHOW(*(u32 *)(buf + 24) & 0170000);
	SHOW(CALL(FSTATAT, f, "", buf, 0x1000)); SHOW(CALL(FSTATAT, f, "", buf, 0)); SHOW(CALL(FSTATAT, d, "../f", buf, 0)); SHOW(CALL(FSTATAT, d, "x", buf, 0x8000000));
	SHOW(CALL(STATX, -100, "f", 0, 0x7ff, buf)); SHOW(*(long *)(buf + 40));
	SHOW(CALL(ACCESS, "f", 4)); SHOW(CALL(ACCESS, "nosuch", 0)); SHOW(CALL(ACCESS, "f", 8)); SHOW(CALL(ACCESS, "f", 1)); SHOW(CALL(ACCESS, "d", 1));
	SHOW(CALL(READLINK, "l", buf, 100)); SHOW(CALL(READLINK, "f", buf, 100)); SHOW(CALL(READLINK, "l", buf, 0)); SHOW(CALL(READLINK, "l", 8, 100));
	SHOW(CALL(GETDENTS, f, buf, 100)); SHOW(CALL(GETDENTS, d, buf, 1)); SHOW(CALL(GETDENTS, d, buf, 4096) > 0); SHOW(CALL(GETDENTS, d, buf, 4096));
	SHOW(CALL(CHDIR, "f")); SHOW(CALL(CHDIR, "nosuch")); SHOW(CALL(FCHDIR, f)); SHOW(CALL(FCHDIR, d)); SHOW(CALL(GETCWD, buf, 1)); SHOW(CALL(GETCWD, 8, 100)); SHOW(CALL(CHDIR, ".."));
	SHOW(CALL(IOCTL, f, 0x5401, buf)); SHOW(CALL(IOCTL, 99, 0x5401, buf)); SHOW(CALL(UMASK, 077)); SHOW(CALL(UMASK, 022));
	SHOW(CALL(MMAP, 0, 4096, 1, 2, f, 1)); SHOW(CALL(MMAP, 0, 4096, 3, 1, f, 0)); SHOW(CALL(MMAP, 0, 4096, 1, 2, 99, 0)); SHOW(CALL(MMAP, 0, 4096, 1, 2, d, 0)); SHOW(CALL(MMAP, 0, 0, 1, 2, f, 0));
	char *m = (char *)CALL(MMAP, 0, 8192, 3, 2, f, 0);
	SHOW(m[0]); SHOW(m[9]); SHOW(m[10]); m[0] = 'x'; SHOW(CALL(PREAD, f, buf, 1, 0)); SHOW(buf[0]); SHOW(CALL(PREAD, f, m + 4096, 1, 0));
}

static void descriptors(void) {
	SHOW(CALL(DUP, 0)); SHOW(CALL(DUP, 99)); SHOW(CALL(DUP2, 0, 50)); SHOW(CALL(DUP2, 0, 0)); SHOW(CALL(DUP2, 99, 99)); SHOW(CALL(DUP2, 0, -1)); SHOW(CALL(DUP3, 0, 0, 0)); SHOW(CALL(DUP3, 0, 51, 1)); SHOW(CALL(DUP3, 0, 51, 02000000));
	SHOW(CALL(FCNTL, 51, 1)); SHOW(CALL(FCNTL, 50, 1)); SHOW(CALL(FCNTL, 50, 2, 1)); SHOW(CALL(FCNTL, 50, 1)); SHOW(CALL(FCNTL, 0, 0, 60)); SHOW(CALL(FCNTL, 0, 1030, 60)); SHOW(CALL(FCNTL, 99, 1)); SHOW(CALL(FCNTL, 0, 0, -1)); SHOW(CALL(FCNTL, 0, 12345));
	SHOW(CALL(CLOSERANGE, 50, 70, 0)); SHOW(CALL(CLOSE, 50)); SHOW(CALL(CLOSERANGE, 9, 8, 0)); SHOW(CALL(CLOSE, -1));
}

static void pipes(void) {
	SHOW(CALL(PIPE2, fd, 04000)); SHOW(CALL(PIPE2, fd, 1)); SHOW(CALL(PIPE, 8)); SHOW(CALL(READ, fd[0], buf, 1)); SHOW(CALL(READ, fd[1], buf, 1)); SHOW(CALL(WRITE, fd[0], buf, 1));
	SHOW(CALL(LSEEK, fd[0], 0, 0)); SHOW(CALL(PREAD, fd[0], buf, 1, 0)); SHOW(CALL(WRITEV, fd[1], iov, 3)); SHOW(CALL(IOCTL, fd[0], 0x541b, &status)); SHOW(status); SHOW(CALL(FCNTL, fd[0], 3));
	p[0].fd = fd[0], p[0].events = 1, p[1].fd = fd[1], p[1].events = 4, p[2].fd = 99, p[2].events = 1;
	SHOW(CALL(POLL, p, 3, 0)); SHOW(p[0].revents); SHOW(p[1].revents); SHOW(p[2].revents); p[2].fd = -1; SHOW(CALL(POLL, p, 3, 0)); SHOW(p[2].revents);
	bits = 1ul << fd[0]; SHOW(CALL(SELECT, fd[0] + 1, &bits, 0, 0, &shortly)); bits = 1ul << 60; SHOW(CALL(SELECT, 61, &bits, 0, 0, &shortly)); SHOW(CALL(SELECT, -1, 0, 0, 0, 0));
	SHOW(CALL(READ, fd[0], buf, 100)); SHOW(CALL(POLL, p, 1, 0)); SHOW(CALL(POLL, p, 1, 1)); SHOW(CALL(PPOLL, p, 1, &shortly, 0, 8)); SHOW(CALL(PPOLL, p, 1, &bad, 0, 8)); SHOW(CALL(PPOLL, p, 1, &never, 0, 8)); SHOW(CALL(POLL, 8, 1, 0)); SHOW(CALL(POLL, p, 100000000, 0));
	long n = 0, w; while ((w = CALL(WRITE, fd[1], buf, 4096)) > 0) n += w; SHOW(w); SHOW(n); SHOW(CALL(WRITE, fd[1], buf, 5000)); SHOW(CALL(POLL, p + 1, 1, 0));
	SHOW(CALL(CLOSE, fd[1])); SHOW(CALL(READ, fd[0], buf, 8192)); SHOW(CALL(POLL, p, 1, 0)); SHOW(p[0].revents); while (CALL(READ, fd[0], buf, 8192) > 0) {} SHOW(CALL(POLL, p, 1, 0)); SHOW(p[0].revents); SHOW(CALL(READ, fd[0], buf, 1)); SHOW(CALL(CLOSE, fd[0]));
	long f = CALL(OPEN, "f", 0); SHOW(CALL(PIPE, fd)); SHOW(CALL(SENDFILE, fd[1], f, 0, 100)); SHOW(CALL(LSEEK, f, 0, 1)); SHOW(CALL(READ, fd[0], buf, 100)); u64 off = 4; SHOW(CALL(SENDFILE, fd[1], f, &off, 3)); SHOW(off); SHOW(CALL(READ, fd[0], buf, 100)); SHOW(buf[0]); SHOW(CALL(SENDFILE, fd[1], fd[0], 0, 3)); SHOW(CALL(SENDFILE, f, f, 0, 3));
}

static void others(void) {
	u32 word = 5;
	SHOW(CALL(FUTEX, &word, 0, 6, 0)); SHOW(CALL(FUTEX, &word, 0, 5, &shortly)); SHOW(CALL(FUTEX, &word, 1, 5)); SHOW(CALL(FUTEX, (long)&word + 1, 0, 5, 0)); SHOW(CALL(FUTEX, 8, 0, 5, 0)); SHOW(CALL(FUTEX, &word, 99, 5, 0)); SHOW(CALL(FUTEX, &word, 9, 5, 0, 0, 0)); SHOW(CALL(FUTEX, &word, 0, 5, &bad));
	SHOW(CALL(NANOSLEEP, &shortly, 0)); SHOW(CALL(NANOSLEEP, &bad, 0)); SHOW(CALL(NANOSLEEP, &never, 0)); SHOW(CALL(NANOSLEEP, 8, 0)); SHOW(CALL(230, 0, 0, &shortly, 0)); SHOW(CALL(230, 3, 0, &shortly, 0)); SHOW(CALL(230, 1, 1, &shortly, 0)); SHOW(CALL(230, 1, 0, &bad, 0));
	SHOW(CALL(CLOCKGETTIME, 0, buf)); SHOW(CALL(CLOCKGETTIME, 99, buf)); SHOW(CALL(CLOCKGETTIME, 1, 8)); SHOW(CALL(GETRANDOM, buf, 100, 0)); SHOW(CALL(GETRANDOM, buf, 100, 99)); SHOW(CALL(GETRANDOM, 8, 100, 0)); SHOW(CALL(UNAME, 8)); SHOW(CALL(UNAME, buf)); SHOW(same(buf, "Linux"));
	SHOW(CALL(KILL, 99999999, 0)); SHOW(CALL(KILL, pid(), 65)); SHOW(CALL(KILL, pid(), -1)); SHOW(CALL(KILL, pid(), 0)); SHOW(CALL(TGKILL, pid(), tid(), 0)); SHOW(CALL(TGKILL, 0, tid(), 0)); SHOW(CALL(TGKILL, pid() + 99999, tid(), 0)); SHOW(CALL(TKILL, 0, 0));
	SHOW(CALL(WAIT4, -1, 0, 0, 0)); SHOW(CALL(WAIT4, -1, 0, 0x1234, 0)); SHOW(CALL(WAIT4, 99999999, 0, 0, 0)); SHOW(CALL(WAITID, 9, 0, 0, 4, 0)); SHOW(CALL(WAITID, 0, 0, 0, 0, 0)); SHOW(CALL(WAITID, 0, 0, 0, 4, 0));
	SHOW(CALL(SETPGID, 0, -1)); SHOW(CALL(SETPGID, 99999999, 0)); SHOW(CALL(GETPGID, 99999999)); SHOW(CALL(GETSID, 99999999));
	SHOW(CALL(PRLIMIT, 0, 99, 0, buf)); SHOW(CALL(PRLIMIT, 0, 3, 0, 8)); SHOW(CALL(GETITIMER, 9, buf)); SHOW(CALL(SETITIMER, 0, 8, 0)); SHOW(CALL(SETITIMER, 0, 0, 0)); SHOW(CALL(ALARM, 1000)); long left = CALL(ALARM, 0); SHOW(left > 0 && left <= 1000); SHOW(CALL(ALARM, 0));
	SHOW(CALL(158, 0x9999, 0)); SHOW(CALL(158, 0x1002, 0xffff800000000000)); SHOW(CALL(SIGALTSTACK, 8, 0)); struct { void *sp; int flags; u64 size; } ss = { buf, 0, 100 }; SHOW(CALL(SIGALTSTACK, &ss, 0)); ss.flags = 77, ss.size = 8192; SHOW(CALL(SIGALTSTACK, &ss, 0));
	SHOW(CALL(EXECVE, "nosuch", 0, 0)); SHOW(CALL(EXECVE, "f", 0, 0)); SHOW(CALL(EXECVE, "d", 0, 0)); SHOW(CALL(EXECVE, 8, 0, 0)); SHOW(CALL(EXECVE, "x", 8, 0)); SHOW(CALL(EXECVE, "text", 0, 0)); SHOW(CALL(999)); SHOW(CALL(-1));
	long child = CALL(FORK); if (child == 0) { CALL(SETSID); long led = CALL(SETPGID, 0, 0), sid = CALL(GETSID, 0); CALL(EXIT, led == -1 && sid > 1 ? 7 : 8); } SHOW(CALL(WAIT4, child, &status, 0, 0) == child); SHOW(status);
}

int program(int argc, char **argv) {
	WANT(argc == 2 && CALL(CHDIR, argv[1]) == 0);
	files();
	descriptors();
	pipes();
	others();
	return 0;
}
