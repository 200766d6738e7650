// What the tests' freestanding programs share. Each is one file with a
// program() that gets argc and argv and returns the exit status.
#pragma once

typedef unsigned long u64;
typedef unsigned int u32;

static inline long call6(long nr, long a, long b, long c, long d, long e, long f) {
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long ret;
	__asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return ret;
}
#define CALL(nr, ...) CALL_(nr, ##__VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define CALL_(nr, a, b, c, d, e, f, ...) call6(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

enum {
	READ = 0, WRITE = 1, CLOSE = 3, MMAP = 9, MPROTECT = 10, MUNMAP = 11, BRK = 12, SIGACTION = 13, SIGPROCMASK = 14,
	SIGRETURN = 15, PIPE = 22, MREMAP = 25, MADVISE = 28, PAUSE = 34, NANOSLEEP = 35, ALARM = 37, SETITIMER = 38,
	GETPID = 39, CLONE = 56, FORK = 57, VFORK = 58, EXECVE = 59, EXIT = 60, WAIT4 = 61, KILL = 62, GETPPID = 110,
	SIGSUSPEND = 130, SIGTIMEDWAIT = 128, SIGALTSTACK = 131, GETTID = 186, EXITGROUP = 231, TGKILL = 234, WAITID = 247
};
enum { EINTR = 4, ECHILD = 10, EAGAIN = 11, ENOMEM = 12, EFAULT = 14, EEXIST = 17, EINVAL = 22 };

static inline long pid(void) { return CALL(GETPID); }
static inline long parent(void) { return CALL(GETPPID); }
static inline long tid(void) { return CALL(GETTID); }
static inline u64 length(const char *s) { u64 n = 0; while (s[n]) n++; return n; }
static inline int same(const char *a, const char *b) { while (*a && *a == *b) a++, b++; return *a == *b; }
static inline void say(const char *s) { CALL(WRITE, 1, s, length(s)); }
static inline void sayNumber(long v) {
	char b[24]; int i = 24; u64 n = v < 0 ? -v : v;
	do b[--i] = '0' + n % 10; while (n /= 10);
	if (v < 0) b[--i] = '-';
	CALL(WRITE, 1, b + i, 24 - i);
}
// WANT ends the program with the line that went wrong.
#define WANT(cond) do { if (!(cond)) { say("failed: " #cond " in line "); sayNumber(__LINE__); say("\n"); CALL(EXITGROUP, 1); } } while (0)

struct action { void *handler; u64 flags; void *restorer; u64 mask; };
struct info { int sig, err, code, pad; u64 addr; char rest[104]; };
void restore(void);
__asm__(".globl restore\nrestore: mov $15,%eax\nsyscall\n");
static inline long handle(int sig, void *handler, u64 flags) {
	struct action a = { handler, flags | 0x04000004, restore, 0 };
	return CALL(SIGACTION, sig, &a, 0, 8);
}

int program(int argc, char **argv);
__attribute__((used)) static void begin(long *sp) { CALL(EXITGROUP, program(*sp, (char **)(sp + 1))); }
__asm__(".globl _start\n_start: mov %rsp,%rdi\nand $-16,%rsp\ncall begin\n");

// gcc makes calls of these even here.
void *memset(void *p, int c, u64 n) { char *b = p; while (n--) { *b++ = c; __asm__ volatile(""); } return p; }
void *memcpy(void *p, const void *q, u64 n) { char *b = p; const char *s = q; while (n--) { *b++ = *s++; __asm__ volatile(""); } return p; }
