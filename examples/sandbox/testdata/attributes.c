// Files in /tmp that get times, owners, more names, and are executed; limits on
// descriptors and processor time; what programs ask about memory and scheduling.
// Each result is a line: the same here and under Linux itself.
#include "guest.h"

enum {
	OPEN = 2, STAT = 4, DUP = 32, DUP2 = 33, FCNTL = 72, CHDIR = 80, RENAME = 82, MKDIR = 83, RMDIR = 84, LINK = 86, UNLINK = 87,
	READLINK = 89, CHMOD = 90, FCHOWN = 93, LCHOWN = 94, GETUID = 102, GETGID = 104, SYSINFO = 99, UTIME = 132, GETPARAM = 143, GETSCHEDULER = 145, PRIORITYMAX = 146,
	LGETXATTR = 192, LISTXATTR = 194, UTIMES = 235, UTIMENSAT = 280, FALLOCATE = 285, PRLIMIT = 302
};

static void show(const char *what, long v) { say(what); say(" "); sayNumber(v); say("\n"); }
#define SHOW(call) show(#call, call)

static char buf[65536], *env[1];
static struct { long sec, nsec; } times[2] = { { 1000, 5 }, { 2000, 7 } };
static int status;
static u64 limit[2];

static long at(const char *path, int offset) { // in struct stat
	for (int i = 0; i < 144; i++) buf[i] = 0;
	return CALL(STAT, path, buf) < 0 ? -1 : *(long *)(buf + offset);
}

static void put(const char *path, const char *text, long n, int mode) {
	long f = CALL(OPEN, path, 0102, mode);
	CALL(WRITE, f, text, n);
	CALL(CLOSE, f);
}

static void attributes(void) {
	put("f", "text", 4, 0600);
	long f = CALL(OPEN, "f", 2), uid = CALL(GETUID), gid = CALL(GETGID);
	SHOW(CALL(UTIMENSAT, -100, "f", times, 0)); SHOW(at("f", 72)); SHOW(at("f", 80)); SHOW(at("f", 88)); SHOW(at("f", 96));
	times[0].nsec = 0x3ffffffe, times[1].sec = 77; // UTIME_OMIT
	SHOW(CALL(UTIMENSAT, f, 0, times, 0)); SHOW(at("f", 72)); SHOW(at("f", 88));
	SHOW(CALL(UTIMENSAT, -100, "f", 0, 0)); SHOW(at("f", 88) > 1600000000);
	SHOW(CALL(UTIMENSAT, -100, "nosuch", times, 0)); SHOW(CALL(UTIMES, "f", 0)); SHOW(CALL(UTIME, "f", 0)); SHOW(CALL(UTIME, "nosuch", 0));
	times[0].nsec = -1; SHOW(CALL(UTIMENSAT, -100, "f", times, 0));
	SHOW(CALL(LCHOWN, "f", uid, gid)); SHOW(CALL(FCHOWN, f, -1, -1)); SHOW(CALL(LCHOWN, "nosuch", 0, 0));
	SHOW(CALL(LINK, "f", "g")); SHOW(at("f", 16)); SHOW(CALL(LINK, "f", "g")); SHOW(CALL(LINK, "nosuch", "h")); SHOW(CALL(LINK, ".", "h"));
	SHOW(at("f", 8) == at("g", 8)); SHOW(CALL(RENAME, "f", "g")); SHOW(at("f", 16)); SHOW(CALL(UNLINK, "f")); SHOW(at("g", 16)); SHOW(at("g", 48));
	long x = CALL(LGETXATTR, "g", "user.x", buf, 100);
	SHOW(x == -61 || x == -95); // by the file system
	SHOW(CALL(LGETXATTR, "nosuch", "user.x", buf, 100)); SHOW(CALL(LISTXATTR, "g", buf, 100));
	SHOW(CALL(FALLOCATE, 99, 0, 0, 1)); SHOW(CALL(UNLINK, "g"));
	long s = CALL(OPEN, "/dev/shm/guestmm-attributes", 0102, 0600);
	SHOW(s >= 0); SHOW(CALL(WRITE, s, "x", 1)); SHOW(CALL(UNLINK, "/dev/shm/guestmm-attributes"));
}

// A copy of this program, and a script for it, are run from where they were written.
static long run(const char *path) {
	long pid = CALL(FORK);
	if (pid == 0) {
		char *argv[] = { (char *)path, "inner", 0 };
		long error = -CALL(EXECVE, path, argv, env);
		CALL(EXIT, 100 + error);
	}
	CALL(WAIT4, pid, &status, 0, 0);
	return status;
}

static void programs(void) {
	long from = CALL(OPEN, "/proc/self/exe", 0), to = CALL(OPEN, "program", 0102, 0755), n;
	while ((n = CALL(READ, from, buf, sizeof buf)) > 0) CALL(WRITE, to, buf, n);
	CALL(CLOSE, to);
	SHOW(run("./program"));
	put("script", "#!./program inner\n", 18, 0755); SHOW(run("./script"));
	put("text", "text\n", 5, 0755); SHOW(run("./text"));
	put("lost", "#!/nosuch\n", 10, 0755); SHOW(run("./lost"));
	CALL(CHMOD, "program", 0644); SHOW(run("./program"));
	CALL(UNLINK, "program"); CALL(UNLINK, "script"); CALL(UNLINK, "text"); CALL(UNLINK, "lost");
}

// In a child: it ends by its limit on time.
static void burn(void) {
	limit[0] = 1, limit[1] = 1;
	if (CALL(PRLIMIT, 0, 0, limit, 0) == 0) for (;;) ;
	CALL(EXIT, 1);
}

static void limits(void) {
	long pid = CALL(FORK);
	if (pid == 0) burn();
	CALL(WAIT4, pid, &status, 0, 0); SHOW(status);
	limit[0] = 20, limit[1] = 1000;
	SHOW(CALL(PRLIMIT, 0, 7, limit, 0)); SHOW(CALL(DUP2, 0, 19)); SHOW(CALL(DUP2, 0, 20)); SHOW(CALL(FCNTL, 0, 0, 20));
	long last = -1, fd;
	while ((fd = CALL(DUP, 0)) >= 0) last = fd;
	SHOW(last); SHOW(fd);
	if (CALL(FORK) == 0) {
		fd = -CALL(DUP, 0);
		CALL(EXIT, fd);
	}
	CALL(WAIT4, -1, &status, 0, 0); SHOW(status);
}

static void questions(void) {
	SHOW(CALL(SYSINFO, buf)); SHOW(*(u32 *)(buf + 104)); // mem_unit
	SHOW(CALL(GETSCHEDULER, 0)); SHOW(CALL(GETPARAM, 0, buf)); SHOW(CALL(GETSCHEDULER, -1)); SHOW(CALL(PRIORITYMAX, 1)); SHOW(CALL(PRIORITYMAX, 99));
	SHOW(CALL(MMAP, 0, 1ul << 60, 3, 0x22, -1, 0));
}

int program(int argc, char **argv) {
	if (argc > 1 && *argv[1] == 'i') { // inner
		char exe[100];
		SHOW(argc); SHOW(CALL(READLINK, "/proc/self/exe", exe, 100) > 0); SHOW(CALL(OPEN, "/proc/self/exe", 0) >= 0);
		return 7;
	}
	if (CALL(MKDIR, argv[1], 0700) < 0 || CALL(CHDIR, argv[1]) < 0) return 1;
	attributes();
	programs();
	questions();
	limits();
	CALL(RMDIR, argv[1]);
	return 0;
}
