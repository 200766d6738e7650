// The memory calls, and processes that share or copy memory.
#include "guest.h"

enum { P = 4096, SHARED = 0x21, PRIVATE = 0x22, FIXED = 0x10, NOREPLACE = 0x100000 };

static void calls(void) {
	long at = CALL(BRK, 0);
	WANT(CALL(BRK, at + 3 * P) == at + 3 * P);
	*(volatile char *)(at + 2 * P) = 1;
	WANT(CALL(BRK, at) == at && CALL(BRK, 1) == at);
	char *p = (char *)CALL(MMAP, 0, 4 * P, 3, PRIVATE, -1, 0);
	WANT((u64)p % P == 0);
	for (int i = 0; i < 4 * P; i += P) p[i] = i / P + 1;
	WANT(CALL(MPROTECT, p + P, P, 1) == 0 && p[P] == 2);
	WANT(CALL(READ, -1, p, 1) == -9);
	int fd[2];
	WANT(CALL(PIPE, fd) == 0 && CALL(WRITE, fd[1], "abc", 3) == 3);
	WANT(CALL(READ, fd[0], p + P, 1) == -EFAULT);
	WANT(CALL(MMAP, p, P, 3, PRIVATE | FIXED | NOREPLACE, -1, 0) == -EEXIST);
	WANT(CALL(MMAP, 0, 0, 3, PRIVATE, -1, 0) == -EINVAL && CALL(MMAP, 1, P, 3, PRIVATE | FIXED, -1, 0) == -EINVAL);
	WANT(CALL(MMAP, 0, P, 3, 0x20, -1, 0) == -EINVAL);
	WANT(CALL(MUNMAP, p + P, 1) == 0 && CALL(MUNMAP, p + 1, P) == -EINVAL && CALL(MUNMAP, p, 0) == -EINVAL);
	WANT(CALL(WRITE, 1, p + P, 1) == -EFAULT);
	WANT(CALL(MADVISE, p, P, 4) == 0 && p[0] == 0);
	WANT(CALL(MADVISE, p, P, 12345) == -EINVAL && CALL(MADVISE, p, 2 * P, 3) == -ENOMEM);
}

static void remap(void) {
	char *p = (char *)CALL(MMAP, 0, 2 * P, 3, PRIVATE, -1, 0);
	p[0] = 7, p[2 * P - 1] = 8;
	char *q = (char *)CALL(MREMAP, p, 2 * P, 64 * P, 1);
	WANT((long)q > 0 && q[0] == 7 && q[2 * P - 1] == 8 && q[63 * P] == 0);
	q[63 * P] = 9;
	WANT(CALL(MREMAP, q, 64 * P, P, 0) == (long)q && q[0] == 7);
	WANT(CALL(MREMAP, q, P, 0, 1) == -EINVAL && CALL(MREMAP, q + 1, P, P, 1) == -EINVAL);
	WANT(CALL(MREMAP, 0x10000, P, 2 * P, 1) == -EFAULT);
}

static void families(void) {
	volatile int *shared = (int *)CALL(MMAP, 0, P, 3, SHARED, -1, 0);
	volatile int *own = (int *)CALL(MMAP, 0, P, 3, PRIVATE, -1, 0);
	*own = 1;
	long child = CALL(FORK);
	if (child == 0) {
		*shared = 42, *own = 2;
		CALL(EXIT, parent() > 1 ? 0 : 9);
	}
	int status = -1;
	WANT(CALL(WAIT4, child, &status, 0, 0) == child && status == 0);
	WANT(*shared == 42 && *own == 1);
	// vfork: the child runs in the parent's memory, the parent waits.
	child = CALL(VFORK);
	if (child == 0) {
		*own = 3;
		CALL(EXIT, 4);
	}
	WANT(*own == 3);
	WANT(CALL(WAIT4, child, &status, 0, 0) == child && status == 0x400);
	WANT(CALL(CLONE, 0x800, 0, 0, 0, 0) == -EINVAL);
}

int program(int argc, char **argv) {
	(void)argc, (void)argv;
	calls();
	remap();
	families();
	say("memory is right\n");
	return 0;
}
