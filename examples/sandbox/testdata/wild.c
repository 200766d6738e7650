// Gives every system call wild arguments, many times. It leaves out what would
// end, stop or multiply it, and nothing else.
#include "guest.h"

static u64 state = 88172645463325252ul;
static u64 next(void) { state ^= state << 13; state ^= state >> 7; state ^= state << 17; return state; }

static int left(long nr) {
	switch (nr) {
	case PAUSE: case FORK: case VFORK: case CLONE: case EXIT: case EXITGROUP: case SIGRETURN: case SIGSUSPEND:
	case KILL: case 200 /* tkill */: case TGKILL: case 129 /* rt_sigqueueinfo */: case 435 /* clone3 */:
	case SIGACTION: case SIGPROCMASK: case ALARM: case SETITIMER: case 219 /* restart_syscall */:
		return 1;
	case MUNMAP: case MPROTECT: case MREMAP: case MMAP: case MADVISE: // tried with arguments that spare the program
		return 2;
	}
	return 0;
}

static char buffer[4096];

static u64 wild(void) {
	u64 r = next();
	switch (r % 16) {
	case 0: return 0;
	case 1: return r >> 32;
	case 2: return r;
	case 3: return -(r >> 56);
	case 4: return (u64)buffer;
	case 5: return (u64)buffer + 4095;
	case 6: return 0x7ffffffff000 - (r >> 60);
	case 7: return 0xffff800000000000 + (r >> 40);
	case 8: return r >> 60;
	case 9: return 1ul << (r >> 58);
	case 10: return 0x7fffffffffffffff;
	case 11: return -100;
	case 12: return 8;
	case 13: return 4096;
	case 14: return (u64)program & ~0xffful;
	default: return r & 0xfff;
	}
}

static void wake(int sig) { (void)sig; }

int program(int argc, char **argv) {
	(void)argc, (void)argv;
	for (int fd = 0; fd < 16; fd++) CALL(CLOSE, fd == 1 ? 99 : fd);
	handle(14, (void *)wake, 0);
	struct { long is, iu, vs, vu; } every = { 0, 5000, 0, 5000 };
	CALL(SETITIMER, 0, &every, 0); // what blocks is interrupted
	for (int round = 0; round < 12; round++)
		for (long nr = 0; nr <= 450; nr++) {
			u64 a = wild(), b = wild(), c = wild(), d = wild(), e = wild(), f = wild();
			switch (left(nr)) {
			case 1: continue;
			case 2: a = 0x200000000 + (a & 0xffffff), e = -1; if (nr == MMAP) d = d | 0x22, b &= 0xffff; else b &= 0xffffff; if (nr == MREMAP) d &= 1, c &= 0xffffff; break;
			}
			if (nr == BRK) a &= 0xffff;
			if (nr == 131 || nr == 158) continue; // the alternate stack and FS may be anything from here on
			if (nr == 1 || nr == 18 || nr == 20 || nr == 40 || nr == 296) a = a == 1 ? 77 : a; // not onto stdout
			if ((nr == 32 || nr == 33 || nr == 292 || nr == 72 || nr == 436 || nr == CLOSE)) a = a | 64, b |= 64; // stdout stays
			if (nr == 293 || nr == PIPE) a = (u64)buffer;
			if (nr == EXECVE || nr == 322) continue; // crash.c has them
			call6(nr, a, b, c, d, e, f);
		}
	say("survived\n");
	return 0;
}
