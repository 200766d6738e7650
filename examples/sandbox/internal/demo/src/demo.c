// What the sandbox runs when it is given no program. Freestanding: it makes
// its system calls itself, so that its bytes depend on no library.

typedef unsigned long u64;

static long call(long nr, long a, long b, long c, long d, long e, long f) {
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long ret;
	__asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return ret;
}

enum { WRITE = 1, MMAP = 9, MUNMAP = 11, GETPID = 39, FORK = 57, EXIT = 60, WAIT4 = 61, PIPE = 22, READ = 0 };

static char line[256];
static int used;

static void put(const char *s) { while (*s) line[used++] = *s++; }

static void number(u64 n) {
	char digits[24];
	int i = 0;
	do digits[i++] = '0' + n % 10; while (n /= 10);
	while (i) line[used++] = digits[--i];
}

static void end(void) {
	line[used++] = '\n';
	call(WRITE, 1, (long)line, used, 0, 0, 0);
	used = 0;
}

static void die(const char *why) {
	put("demo: failed: ");
	put(why);
	end();
	call(EXIT, 1, 0, 0, 0, 0, 0);
}

#define PAGES 1024
#define WORDS (PAGES * 512)
#define STEP 512

static u64 sum(const volatile u64 *p) {
	u64 s = 0;
	for (long i = 0; i < WORDS; i += STEP) s += p[i];
	return s;
}

static void fill(volatile u64 *p, u64 base) {
	for (long i = 0; i < WORDS; i += STEP) p[i] = base + i / STEP;
}

static u64 expected(u64 base) { return base * PAGES + (u64)PAGES * (PAGES - 1) / 2; }

void _start(void) {
	put("demo: process ");
	number(call(GETPID, 0, 0, 0, 0, 0, 0));
	put(" runs in ring 3 of a vCPU");
	end();

	u64 *p = (u64 *)call(MMAP, 0, PAGES * 4096L, 3, 0x22, -1, 0);
	if ((u64)p > -4096UL) die("mmap");
	fill(p, 1000);
	if (sum(p) != expected(1000)) die("memory does not hold what was written");
	put("demo: mapped and wrote ");
	number(PAGES);
	put(" pages");
	end();

	int to_child[2], to_parent[2];
	char token = 'x';
	if (call(PIPE, (long)to_child, 0, 0, 0, 0, 0) || call(PIPE, (long)to_parent, 0, 0, 0, 0, 0)) die("pipe");
	long child = call(FORK, 0, 0, 0, 0, 0, 0);
	if (child < 0) die("fork");
	if (child == 0) {
		if (sum(p) != expected(1000)) call(EXIT, 2, 0, 0, 0, 0, 0);
		fill(p, 5000);
		call(WRITE, to_parent[1], (long)&token, 1, 0, 0, 0);
		call(READ, to_child[0], (long)&token, 1, 0, 0, 0); // the parent has written by now
		call(EXIT, sum(p) == expected(5000) ? 0 : 3, 0, 0, 0, 0, 0);
	}
	call(READ, to_parent[0], (long)&token, 1, 0, 0, 0); // the child has written by now
	put("demo: forked; the child saw every page and overwrote them all");
	end();
	if (sum(p) != expected(1000)) die("the parent sees the child's writes");
	put("demo: the parent sees none of the child's writes");
	end();
	fill(p, 9000);
	call(WRITE, to_child[1], (long)&token, 1, 0, 0, 0);
	int status = -1;
	if (call(WAIT4, child, (long)&status, 0, 0, 0, 0) != child) die("wait4");
	if (status == 0x200) die("the child saw other pages than the parent wrote");
	if (status != 0) die("the child sees the parent's writes");
	put("demo: the child saw none of the parent's writes");
	end();
	if (sum(p) != expected(9000)) die("the parent lost its own writes");
	if (call(MUNMAP, (long)p, PAGES * 4096L, 0, 0, 0, 0)) die("munmap");
	put("demo: done");
	end();
	call(EXIT, 0, 0, 0, 0, 0, 0);
}
