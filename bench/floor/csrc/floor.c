// floor: what serving page faults costs when nothing stands between a loop in C
// and the kernel. Each run measures one thing and prints "NANOSECONDS OPERATIONS",
// the first for one operation.
//
//   floor serve MODE PAGES block|spin   serves a guest that it starts
//   floor guest MODE PAGES SOCKET       the guest alone: who has SOCKET serves
//   floor bulk PAGES RUN                UFFDIO_COPY, RUN pages in each call
//   floor arm BYTES                     one UFFDIO_WRITEPROTECT of BYTES of shmem
//   floor rearm BYTES RUNS PAGES        the same of RUNS runs of PAGES pages that are not
//                                       armed any more, among BYTES that are: each run by
//                                       itself, or all by one call, whichever is less
//   floor many MODE PAGES GUESTS        serves GUESTS at once, a thread for each
//   floor fork BYTES AREAS              fork(2) with BYTES touched in AREAS areas
//   floor calls PROGRAM ARGUMENT...     runs a program and counts its system calls, those of
//                                       all its threads and children
//
// MODE is missing, missing-shmem, minor, wp or zeropage. arm, rearm and fork measure
// once more for each byte that they read.
//
// A guest sends its userfaultfd by SCM_RIGHTS with the address of its memory (8
// bytes), starts when it reads a byte, and prints when it has touched every page.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/poll.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// Newer than some headers.
#define FEATURE_WP (1ull << 0)
#define FEATURE_MINOR_SHMEM (1ull << 10)
#define FEATURE_WP_SHMEM (1ull << 12)
#define MODE_MISSING (1ull << 0)
#define MODE_WP (1ull << 1)
#define MODE_MINOR (1ull << 2)
struct resolve_continue {
	uint64_t start, len, mode;
	int64_t mapped;
};
struct resolve_wp {
	uint64_t start, len, mode;
};
#define REQ_CONTINUE _IOWR(0xAA, 0x07, struct resolve_continue)
#define REQ_WP _IOWR(0xAA, 0x06, struct resolve_wp)

enum { PAGE = 4096, SPIN_NS = 50000, POPULATE_WRITE = 23 };

static void must(int ok, const char *what) {
	if (ok)
		return;
	fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int64_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static void print(int64_t took, uint64_t ops) {
	printf("%.3f %llu\n", (double)took / ops, (unsigned long long)ops);
	fflush(stdout);
}

// once_more waits until another round is asked for; 0 if none is.
static int once_more(void) {
	char c;
	return read(0, &c, 1) == 1;
}

static int open_uffd(uint64_t features) {
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	int dev = fd < 0 && errno == EPERM ? open("/dev/userfaultfd", O_RDWR | O_CLOEXEC) : -1;
	if (dev >= 0) {
		fd = ioctl(dev, _IO(0xAA, 0x00), O_CLOEXEC | O_NONBLOCK); // USERFAULTFD_IOC_NEW
		close(dev);
	}
	must(fd >= 0, "userfaultfd");
	struct uffdio_api api = {.api = UFFD_API, .features = features};
	must(ioctl(fd, UFFDIO_API, &api) == 0, "UFFDIO_API");
	return fd;
}

static void enroll(int fd, char *at, size_t n, uint64_t mode) {
	struct uffdio_register r = {.range = {(uintptr_t)at, n}, .mode = mode};
	must(ioctl(fd, UFFDIO_REGISTER, &r) == 0, "UFFDIO_REGISTER");
}

static void protect(int fd, uint64_t at, size_t n, int on) {
	struct resolve_wp w = {at, n, on};
	must(ioctl(fd, REQ_WP, &w) == 0, "UFFDIO_WRITEPROTECT");
}

static char *map_private(size_t n) {
	char *at = mmap(0, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(at != MAP_FAILED, "mmap");
	madvise(at, n, MADV_NOHUGEPAGE);
	return at;
}

static char *map_memfd(size_t n, int *fd) {
	if (*fd < 0) {
		*fd = memfd_create("floor", MFD_CLOEXEC);
		must(*fd >= 0 && ftruncate(*fd, n) == 0, "memfd");
	}
	char *at = mmap(0, n, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	must(at != MAP_FAILED, "mmap");
	return at;
}

// fill has every page there and writable: at once, where the kernel can (5.14).
static void fill(char *at, size_t n) {
	if (madvise(at, n, POPULATE_WRITE) != 0)
		memset(at, 1, n);
}

// What a mode needs: memory made ready, and how it is touched.
struct subject {
	int fd; // of the userfaultfd
	char *at;
	size_t size;
	int write, zeropage;
};

static int is_zeropage(const char *mode) {
	return !strcmp(mode, "zeropage");
}

static struct subject ready(const char *mode, size_t pages) {
	struct subject s = {.size = pages * PAGE};
	int mem = -1;
	if (!strcmp(mode, "missing") || is_zeropage(mode)) {
		s.zeropage = is_zeropage(mode);
		s.write = !s.zeropage; // a write to the page of zeroes would copy it
		s.fd = open_uffd(0);
		s.at = map_private(s.size);
		enroll(s.fd, s.at, s.size, MODE_MISSING);
	} else if (!strcmp(mode, "missing-shmem")) {
		s.write = 1;
		s.fd = open_uffd(0);
		s.at = map_memfd(s.size, &mem);
		enroll(s.fd, s.at, s.size, MODE_MISSING);
	} else if (!strcmp(mode, "minor")) {
		s.fd = open_uffd(FEATURE_MINOR_SHMEM);
		char *alias = map_memfd(s.size, &mem);
		memset(alias, 1, s.size);
		s.at = map_memfd(s.size, &mem);
		enroll(s.fd, s.at, s.size, MODE_MINOR);
	} else if (!strcmp(mode, "wp")) {
		s.write = 1;
		s.fd = open_uffd(FEATURE_WP | FEATURE_WP_SHMEM);
		s.at = map_memfd(s.size, &mem);
		memset(s.at, 1, s.size);
		enroll(s.fd, s.at, s.size, MODE_WP);
		protect(s.fd, (uintptr_t)s.at, s.size, 1);
	} else {
		fprintf(stderr, "floor: no mode %s\n", mode);
		exit(2);
	}
	return s;
}

static void touch(struct subject *s) {
	volatile char sink = 0;
	int64_t t = now();
	for (size_t i = 0; i < s->size; i += PAGE) {
		if (s->write)
			s->at[i] = 1;
		else
			sink += s->at[i];
	}
	print(now() - t, s->size / PAGE);
}

static char content[PAGE] __attribute__((aligned(PAGE)));

static void resolve(struct subject *s, struct uffd_msg *m) {
	if (m->event != UFFD_EVENT_PAGEFAULT)
		return;
	uint64_t at = m->arg.pagefault.address & ~(uint64_t)(PAGE - 1), flags = m->arg.pagefault.flags;
	if (flags & 2) {
		protect(s->fd, at, PAGE, 0);
	} else if (flags & 4) {
		struct resolve_continue c = {.start = at, .len = PAGE};
		must(ioctl(s->fd, REQ_CONTINUE, &c) == 0, "UFFDIO_CONTINUE");
	} else if (s->zeropage) {
		struct uffdio_zeropage z = {.range = {at, PAGE}};
		must(ioctl(s->fd, UFFDIO_ZEROPAGE, &z) == 0, "UFFDIO_ZEROPAGE");
	} else {
		struct uffdio_copy c = {.dst = at, .src = (uintptr_t)content, .len = PAGE};
		must(ioctl(s->fd, UFFDIO_COPY, &c) == 0, "UFFDIO_COPY");
	}
}

static void serve_blocking(struct subject *s) {
	struct uffd_msg m;
	fcntl(s->fd, F_SETFL, 0); // blocking
	for (;;)
		if (read(s->fd, &m, sizeof m) == sizeof m)
			resolve(s, &m);
}

static void serve_spinning(struct subject *s) {
	struct uffd_msg m;
	for (int64_t since = now();;) {
		if (read(s->fd, &m, sizeof m) == sizeof m) {
			resolve(s, &m);
			since = now();
		} else if (now() - since > SPIN_NS) {
			struct pollfd p = {.fd = s->fd, .events = POLLIN};
			poll(&p, 1, -1);
			since = now();
		}
	}
}

static void *serve_block(void *s) {
	serve_blocking(s);
	return 0;
}

static void *serve_spin(void *s) {
	serve_spinning(s);
	return 0;
}

static void send_subject(int sock, struct subject *s) {
	uint64_t base = (uintptr_t)s->at;
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec v = {&base, sizeof base};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &s->fd, sizeof(int));
	must(sendmsg(sock, &m, 0) == sizeof base, "sendmsg");
}

static int receive_uffd(int sock) {
	uint64_t base;
	int fd;
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec v = {&base, sizeof base};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
	must(recvmsg(sock, &m, 0) == sizeof base && CMSG_FIRSTHDR(&m), "recvmsg");
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
	return fd;
}

static void guest(const char *mode, size_t pages, int sock) {
	struct subject s = ready(mode, pages);
	char go;
	send_subject(sock, &s);
	must(read(sock, &go, 1) == 1, "start");
	touch(&s);
}

// serve starts a guest in a process of its own, as it is everywhere, and serves
// it by a thread, so that this one can wait for its end.
static void serve(const char *mode, size_t pages, void *(*how)(void *)) {
	int socks[2], status;
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, socks) == 0, "socketpair");
	pid_t pid = fork();
	must(pid >= 0, "fork");
	if (pid == 0) {
		guest(mode, pages, socks[1]);
		_exit(0);
	}
	close(socks[1]);
	struct subject s = {.fd = receive_uffd(socks[0]), .zeropage = is_zeropage(mode)};
	pthread_t th;
	pthread_create(&th, 0, how, &s);
	must(write(socks[0], "g", 1) == 1, "start");
	must(waitpid(pid, &status, 0) == pid, "waitpid");
	if (status != 0)
		exit(1);
}

static void bulk(size_t pages, size_t run) {
	int fd = open_uffd(0);
	size_t n = pages * PAGE, part = run * PAGE;
	char *src = map_private(part), *at = map_private(n);
	memset(src, 1, part);
	enroll(fd, at, n, MODE_MISSING);
	int64_t t = now();
	for (size_t i = 0; i < n; i += part) {
		struct uffdio_copy c = {.dst = (uintptr_t)at + i, .src = (uintptr_t)src, .len = part};
		must(ioctl(fd, UFFDIO_COPY, &c) == 0, "UFFDIO_COPY");
	}
	print(now() - t, pages);
}

// disarm makes all writable again, in the page tables too.
static void disarm(int fd, char *at, size_t n) {
	protect(fd, (uintptr_t)at, n, 0);
	for (size_t i = 0; i < n; i += PAGE)
		at[i] = 1;
}

static void arm(size_t n) {
	int fd = open_uffd(FEATURE_WP | FEATURE_WP_SHMEM), mem = -1;
	char *at = map_memfd(n, &mem);
	fill(at, n);
	enroll(fd, at, n, MODE_WP);
	do {
		int64_t t = now();
		protect(fd, (uintptr_t)at, n, 1);
		print(now() - t, 1);
	} while (once_more() && (disarm(fd, at, n), 1));
}

// rearm is what taking the next snapshot asks of the kernel at least.
static void rearm(size_t n, size_t runs, size_t pages) {
	int fd = open_uffd(FEATURE_WP | FEATURE_WP_SHMEM), mem = -1;
	char *at = map_memfd(n, &mem);
	fill(at, n);
	enroll(fd, at, n, MODE_WP);
	protect(fd, (uintptr_t)at, n, 1);
	size_t step = n / runs / PAGE * PAGE;
	int64_t took[2];
	do {
		for (int whole = 0; whole < 2; whole++) {
			for (size_t i = 0; i < runs; i++)
				disarm(fd, at + i * step, pages * PAGE);
			int64_t t = now();
			if (whole)
				protect(fd, (uintptr_t)at, n, 1);
			else
				for (size_t i = 0; i < runs; i++)
					protect(fd, (uintptr_t)at + i * step, pages * PAGE, 1);
			took[whole] = now() - t;
		}
		print(took[0] < took[1] ? took[0] : took[1], 1);
	} while (once_more());
}

// many prints the time for one page of all guests' together.
static void many(const char *mode, size_t pages, int guests) {
	struct subject *s = calloc(guests, sizeof *s);
	int *sock = calloc(guests, sizeof *sock), status;
	must(s && sock, "calloc");
	for (int i = 0; i < guests; i++) {
		int socks[2];
		must(socketpair(AF_UNIX, SOCK_STREAM, 0, socks) == 0, "socketpair");
		pid_t pid = fork();
		must(pid >= 0, "fork");
		if (pid == 0) {
			must(freopen("/dev/null", "w", stdout) != 0, "/dev/null");
			guest(mode, pages, socks[1]);
			_exit(0);
		}
		close(socks[1]);
		sock[i] = socks[0];
		s[i].fd = receive_uffd(socks[0]);
		s[i].zeropage = is_zeropage(mode);
	}
	for (int i = 0; i < guests; i++) {
		pthread_t th;
		must(pthread_create(&th, 0, serve_block, &s[i]) == 0, "thread");
	}
	int64_t t = now();
	for (int i = 0; i < guests; i++)
		must(write(sock[i], "g", 1) == 1, "start");
	for (int i = 0; i < guests; i++) {
		must(wait(&status) > 0, "wait");
		if (status != 0)
			exit(1);
	}
	print(now() - t, pages * guests);
}

// forks times fork(2) alone, of a process with that much memory.
static void forks(size_t n, size_t areas) {
	char *at = map_private(n);
	fill(at, n);
	for (size_t i = 1; areas > 1 && i < n / PAGE; i += 2)
		must(mprotect(at + i * PAGE, PAGE, PROT_READ) == 0, "mprotect");
	do {
		int64_t took = 0, began = now();
		int count = 0, status;
		for (; count == 0 || now() - began < 20000000; count++) {
			int64_t t = now();
			pid_t pid = fork();
			must(pid >= 0, "fork");
			if (pid == 0)
				_exit(0);
			took += now() - t;
			must(waitpid(pid, &status, 0) == pid, "waitpid");
		}
		print(took / count, 1);
	} while (once_more());
}

// The kernel's struct ptrace_syscall_info, as far as it is used.
struct call_info {
	uint8_t op, pad[3];
	uint32_t arch;
	uint64_t ip, sp, nr, args[6];
};
enum { GET_CALL_INFO = 0x420e, CALL_ENTRY = 1 };

// counts leaves out what programs do by the clock: the more of it the slower they
// are, and traced ones are slow.
static int counts(uint64_t nr) {
	return nr != SYS_nanosleep && nr != SYS_clock_nanosleep && nr != SYS_sched_yield;
}

static void calls(char **argv) {
	int status, result = 1;
	uint64_t n = 0;
	pid_t pid = fork();
	must(pid >= 0, "fork");
	if (pid == 0) {
		must(freopen("/dev/null", "w", stdout) != 0, "/dev/null");
		must(ptrace(PTRACE_TRACEME, 0, 0, 0) == 0, "PTRACE_TRACEME");
		raise(SIGSTOP);
		execvp(argv[0], argv);
		must(0, argv[0]);
	}
	must(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status), "waitpid");
	long follow = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_EXITKILL;
	must(ptrace(PTRACE_SETOPTIONS, pid, 0, follow) == 0, "PTRACE_SETOPTIONS");
	ptrace(PTRACE_SYSCALL, pid, 0, 0);
	for (pid_t who; (who = waitpid(-1, &status, __WALL)) > 0;) {
		if (who == pid && (WIFEXITED(status) || WIFSIGNALED(status)))
			result = status;
		if (!WIFSTOPPED(status))
			continue;
		long signal = WSTOPSIG(status);
		if (signal == (SIGTRAP | 0x80)) {
			struct call_info info = {0};
			must(ptrace(GET_CALL_INFO, who, sizeof info, &info) > 0, "PTRACE_GET_SYSCALL_INFO");
			n += info.op == CALL_ENTRY && counts(info.nr);
			signal = 0;
		} else if (signal == SIGTRAP || signal == SIGSTOP) {
			signal = 0; // a new thread or child, or an exec
		}
		ptrace(PTRACE_SYSCALL, who, 0, signal);
	}
	must(result == 0, "the program counted has failed");
	print(n, 1);
}

int main(int argc, char **argv) {
	const char *what = argc > 1 ? argv[1] : "";
	memset(content, 7, sizeof content);
	if (!strcmp(what, "serve") && argc == 5) {
		serve(argv[2], strtoul(argv[3], 0, 10), argv[4][0] == 's' ? serve_spin : serve_block);
	} else if (!strcmp(what, "guest") && argc == 5) {
		guest(argv[2], strtoul(argv[3], 0, 10), atoi(argv[4]));
	} else if (!strcmp(what, "bulk") && argc == 4) {
		bulk(strtoul(argv[2], 0, 10), strtoul(argv[3], 0, 10));
	} else if (!strcmp(what, "arm") && argc == 3) {
		arm(strtoull(argv[2], 0, 10));
	} else if (!strcmp(what, "rearm") && argc == 5) {
		rearm(strtoull(argv[2], 0, 10), strtoul(argv[3], 0, 10), strtoul(argv[4], 0, 10));
	} else if (!strcmp(what, "many") && argc == 5) {
		many(argv[2], strtoul(argv[3], 0, 10), atoi(argv[4]));
	} else if (!strcmp(what, "fork") && argc == 4) {
		forks(strtoull(argv[2], 0, 10), strtoul(argv[3], 0, 10));
	} else if (!strcmp(what, "calls") && argc >= 3) {
		calls(argv + 2);
	} else {
		fprintf(stderr, "usage: floor serve MODE PAGES block|spin | guest MODE PAGES SOCKET | bulk PAGES RUN | arm BYTES |\n"
		                "       rearm BYTES RUNS PAGES | many MODE PAGES GUESTS | fork BYTES AREAS |\n"
		                "       calls PROGRAM ARGUMENT...\n");
		return 2;
	}
	// The threads that serve end with the process.
	_exit(0);
}
