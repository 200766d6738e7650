// The kernel's side of TestOracle: a process whose address space is the
// kernel's own, and which does in it what it is told.
//
// It has no libc and no stack but its own, and is linked high above where the
// kernel places mappings, so that nothing of it is in the window. All else is
// reserved, but for a page above the window: what goes on beyond its end finds a
// hole there. What the kernel places in that page is taken back (see place).
//
//	reserved  window  hole  reserved  helper          reserved  ring  reserved
//	                  1 page          0x7ffff9000000
//
// A zygote sets the address space up and does nothing else; each sequence runs
// in processes forked from it. They read from a pipe each that there are calls,
// take them from the ring, put the answers there, and say so in another pipe.
//
// Build with build.sh, which runs this; helper.bin is what it gave:
//
//	gcc -O1 -Wall -ffreestanding -fno-builtin -fno-stack-protector -fPIE -fcf-protection=none -fno-asynchronous-unwind-tables -mno-sse -nostdlib -static -no-pie -Wl,-Ttext-segment=0x7ffff9000000,-z,noexecstack,-z,norelro,--build-id=none -s -o helper.bin helper.c

#pragma GCC visibility push(hidden)

typedef unsigned long u64;
typedef long i64;
typedef unsigned int u32;

enum { // descriptors, as they are inherited
	FD_RING = 3,
	FD_DONE = 4,
	FD_COMMAND = 5, // of the zygote; then those of the slots
};

enum { // codes of calls; oracle_call_test.go has the same
	CALL_SYSCALL,
	CALL_PLACE,
	CALL_LOAD,
	CALL_STORE,
	CALL_STRING,
	CALL_TOUCH,
	CALL_POPULATE,
	CALL_WORD,
	CALL_FORK,
	CALL_EXIT,
	CALL_NOTHING,
	CALL_FORCE,     // a write whatever the area allows
	CALL_CONFIGURE, // the zygote's only: window, heap
	CALL_REMAP,
};

enum { MAX_CALLS = 64, BUFFER = 16 << 10 };

struct call {
	u64 code;
	u64 args[7];
	i64 value;   // an answer: a number or a negative errno
	u64 trouble; // 0, 1 no mapping, 2 no permission, 3 bus error
	u64 spare[6];
};

struct ring {
	u64 count;     // calls to do
	u64 mmap_base; // answer of the zygote: the end of what the kernel places
	u64 lo, hi;    // the window
	u64 min;       // answer of the zygote: the lowest address that it places at
	u64 spare[507];
	struct call calls[MAX_CALLS];
	unsigned char buffers[MAX_CALLS][BUFFER];
};

#define RING ((struct ring *)0x7ffffa000000)
#define TASK_SIZE 0x7ffffffff000UL
#define PAGE 4096UL

enum {
	SYS_read = 0, SYS_write = 1, SYS_open = 2, SYS_close = 3, SYS_pwrite64 = 18, SYS_mmap = 9, SYS_munmap = 11, SYS_rt_sigaction = 13,
	SYS_clone = 56, SYS_execve = 59, SYS_wait4 = 61, SYS_readlink = 89, SYS_capset = 126, SYS_personality = 135,
	SYS_prctl = 157, SYS_setrlimit = 160, SYS_exit_group = 231,
};

static i64 sys(i64 nr, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	i64 ret;
	register u64 r10 asm("r10") = d, r8 asm("r8") = e, r9 asm("r9") = f;
	asm volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return ret;
}

static void die(int code)
{
	for (;;)
		sys(SYS_exit_group, code, 0, 0, 0, 0, 0);
}

// Accesses that may fault. Each has one instruction that can, and where to go
// on when it has; the handler knows both.
asm(".text\n"
    "acc_copy: mov %rdx,%rcx\n"
    "f_copy: rep movsb\n"
    "t_copy: mov %rcx,%rax\n ret\n"
    "acc_byte:\n"
    "f_byte: movzbl (%rdi),%eax\n"
    "t_byte: ret\n"
    "acc_or:\n"
    "f_or: lock orb $0,(%rdi)\n"
    "t_or: ret\n"
    "acc_load32:\n"
    "f_load32: movl (%rdi),%eax\n"
    "t_load32: ret\n"
    "acc_load64:\n"
    "f_load64: movq (%rdi),%rax\n"
    "t_load64: ret\n"
    "acc_store32:\n"
    "f_store32: movl %esi,(%rdi)\n"
    "t_store32: ret\n"
    "acc_store64:\n"
    "f_store64: movq %rsi,(%rdi)\n"
    "t_store64: ret\n"
    "acc_swap32: mov %rsi,%rax\n"
    "f_swap32: lock cmpxchgl %edx,(%rdi)\n"
    "sete %al\n movzbl %al,%eax\n"
    "t_swap32: ret\n"
    "acc_swap64: mov %rsi,%rax\n"
    "f_swap64: lock cmpxchgq %rdx,(%rdi)\n"
    "sete %al\n movzbl %al,%eax\n"
    "t_swap64: ret\n"
    "acc_exec: call *%rdi\n ret\n"
    "restorer: mov $15,%eax\n syscall\n");

u64 acc_copy(void *dst, const void *src, u64 n); // returns how many were not copied
u64 acc_byte(u64 at);
u64 acc_or(u64 at);
u64 acc_load32(u64 at), acc_load64(u64 at);
u64 acc_store32(u64 at, u64 v), acc_store64(u64 at, u64 v);
u64 acc_swap32(u64 at, u64 old, u64 new), acc_swap64(u64 at, u64 old, u64 new);
u64 acc_exec(u64 at);
void restorer(void);

static u64 trouble, executing;

struct siginfo {
	int signo, err, code, pad;
	u64 addr;
};

struct ucontext {
	u64 flags, link, stack[3];
	u64 r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip;
};

#define FIXUP(name)                                                          \
	do {                                                                 \
		extern char f_##name[], t_##name[];                          \
		if (c->rip == (u64)f_##name) {                               \
			c->rip = (u64)t_##name;                              \
			return;                                              \
		}                                                            \
	} while (0)

static void handler(int signo, struct siginfo *si, struct ucontext *c)
{
	enum { SIGBUS = 7, ACCERR = 2 };
	trouble = signo == SIGBUS ? 3 : si->code == ACCERR ? 2 : 1;
	// What is reserved around the window is nothing to the other side.
	if (trouble == 2 && (si->addr < RING->lo || si->addr >= RING->hi))
		trouble = 1;
	if (executing && c->rip == executing) { // as if it had returned
		c->rip = *(u64 *)c->rsp;
		c->rsp += 8;
		return;
	}
	FIXUP(copy);
	FIXUP(byte);
	FIXUP(or);
	FIXUP(load32);
	FIXUP(load64);
	FIXUP(store32);
	FIXUP(store64);
	FIXUP(swap32);
	FIXUP(swap64);
	die(100 + signo);
}

static int outside(i64 at, u64 len)
{
	return (u64)at < RING->lo || (u64)at + len > RING->hi;
}

// outside_in_child is the trial of place in a child, which inherits no lock on what
// will be mapped, and lifts the limit on the address space: where one of them is the
// error, the trial would have it too.
static int outside_in_child(u64 *a, u64 len, int flags)
{
	enum { SIGCHLD = 17, RLIMIT_AS = 9 };
	int status = 0;
	i64 pid = sys(SYS_clone, SIGCHLD, 0, 0, 0, 0, 0);
	if (pid == 0) {
		u64 any[2] = { ~0UL, ~0UL };
		sys(SYS_setrlimit, RLIMIT_AS, (u64)any, 0, 0, 0, 0);
		i64 trial = sys(a[0], a[1], a[2], 0, flags, -1, a[6]);
		sys(SYS_exit_group, (trial >= 0 || trial < -4095) && outside(trial, len), 0, 0, 0, 0, 0);
	}
	if (pid < 0 || sys(SYS_wait4, pid, (u64)&status, 0, 0, 0, 0) != pid)
		die(99);
	return status != 0;
}

// place is an mmap that chooses where. Outside of the window there is no room:
// what comes to lie there is taken back. Linux finds a place before it finds
// some other faults, so that after an error it is asked where it would have been.
static i64 place(u64 *a)
{
	enum { PRIVATE_ANONYMOUS_NORESERVE = 0x4022, EAGAIN = 11, ENOMEM = 12 };
	u64 len = (a[2] + PAGE - 1) & -PAGE;
	i64 at = sys(a[0], a[1], a[2], a[3], a[4], a[5], a[6]);
	if (at >= 0 || at < -4095) {
		if (!outside(at, len))
			return at;
		sys(SYS_munmap, at, len, 0, 0, 0, 0);
		return -ENOMEM;
	}
	i64 trial = sys(a[0], a[1], a[2], 0, PRIVATE_ANONYMOUS_NORESERVE, -1, a[6]);
	if (trial == -EAGAIN || trial == -ENOMEM)
		return outside_in_child(a, len, PRIVATE_ANONYMOUS_NORESERVE) ? -ENOMEM : at;
	if (trial < 0 && trial >= -4095)
		return at;
	sys(SYS_munmap, trial, len, 0, 0, 0, 0);
	return outside(trial, len) ? -ENOMEM : at;
}

// remap is an mremap. What goes where there is no room, outside of the window, is
// taken back: it was a second view, or goes to where it came from.
static i64 remap(u64 *a)
{
	enum { MAYMOVE = 1, FIXED = 2, ENOMEM = 12 };
	u64 len = (a[3] + PAGE - 1) & -PAGE;
	i64 at = sys(a[0], a[1], a[2], a[3], a[4], a[5], 0);
	if ((at < 0 && at >= -4095) || (u64)at == a[1] || !outside(at, len))
		return at;
	if (a[2])
		sys(a[0], at, len, (a[2] + PAGE - 1) & -PAGE, MAYMOVE | FIXED, a[1], 0);
	else
		sys(SYS_munmap, at, len, 0, 0, 0, 0);
	return -ENOMEM;
}

// string finds a NUL byte by byte. Where the kernel's own copy of a string
// touches nothing more, it is asked as well.
static i64 string(u64 at, u64 max, unsigned char *out)
{
	enum { PATH_MAX = 4096, EFAULT = 14, ENAMETOOLONG = 36, DISAGREE = 4094 };
	char link[16];
	u64 n = 0;
	for (; n < max; n++) {
		unsigned char c = acc_byte(at + n);
		if (trouble)
			break;
		if (c == 0)
			return n;
		out[n] = c;
	}
	if (max == PATH_MAX) {
		i64 e = sys(SYS_readlink, at, (u64)link, sizeof link, 0, 0, 0);
		if (e != (trouble ? -EFAULT : -ENAMETOOLONG))
			return -DISAGREE;
	}
	return trouble ? 0 : -ENAMETOOLONG;
}

static i64 touch(u64 at, u64 access)
{
	u64 b;
	switch (access) {
	case 1:
		acc_byte(at);
		return 0;
	case 2:
		acc_or(at);
		return 0;
	}
	b = acc_byte(at);
	if (trouble)
		return 0;
	if (b == 0xc3) {
		executing = at;
		acc_exec(at);
		executing = 0;
	}
	return b;
}

static i64 populate(u64 at, u64 len, u64 access)
{
	u64 end = at + len;
	for (at &= -PAGE; at < end && !trouble; at += PAGE)
		touch(at, access);
	return 0;
}

static i64 word(u64 at, u64 what, u64 v, u64 new)
{
	u64 r = 0;
	switch (what) {
	case 0: r = acc_load32(at); break;
	case 1: acc_store32(at, v); break;
	case 2: r = acc_swap32(at, (u32)v, new); break;
	case 4: r = acc_load64(at); break;
	case 5: acc_store64(at, v); break;
	case 6: r = acc_swap64(at, v, new); break;
	}
	return trouble || (what & 3) == 1 ? 0 : (i64)r;
}

// force writes as a debugger does: a private page is copied first if it has to.
static i64 force(u64 at, u64 len, unsigned char *from)
{
	enum { O_RDWR_CLOEXEC = 02000002 };
	i64 fd = sys(SYS_open, (u64)"/proc/self/mem", O_RDWR_CLOEXEC, 0, 0, 0, 0), n = fd;
	if (fd >= 0) {
		n = sys(SYS_pwrite64, fd, (u64)from, len, at, 0, 0);
		sys(SYS_close, fd, 0, 0, 0, 0, 0);
	}
	return n;
}

static i64 fork_into(u64 slot, int *fd)
{
	enum { CLONE_PARENT = 0x8000, SIGCHLD = 17 };
	i64 pid = sys(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0, 0);
	if (pid == 0)
		*fd = FD_COMMAND + 1 + slot;
	return pid;
}

static u64 helper_end(void)
{
	extern char _end[];
	return ((u64)_end + PAGE - 1) & -PAGE;
}

static u64 ring_end(void) { return ((u64)(RING + 1) + PAGE - 1) & -PAGE; }

static i64 reserve(u64 from, u64 to)
{
	i64 at = from < to ? sys(SYS_mmap, from, to - from, 0, 0x104022, -1, 0) : 0;
	return at < 0 && at >= -4095 ? at : 0;
}

// configure reserves what is outside of the window and says where the heap is.
// It gives up all privilege: Linux lets root map at 0. The limit on data counts what it
// has itself; that it has as much in its data segment has the heap count it too.
static i64 configure(u64 brk, u64 data)
{
	enum { PR_SET_MM = 35, PR_SET_MM_MAP = 14 };
	u64 min = RING->min;
	struct {
		u64 start_code, end_code, start_data, end_data, start_brk, brk, start_stack,
			arg_start, arg_end, env_start, env_end, auxv;
		u32 auxv_size, exe_fd;
	} m = { min, min + 1, min + 1, min + 1 + data, brk, brk, TASK_SIZE - PAGE, min, min, min, min, 0, 0, -1 };
	struct { u32 version; int pid; } header = { 0x20080522, 0 };
	u32 none[6] = { 0 };
	i64 e;
	extern char __executable_start[];
	u64 gaps[][2] = { { min, RING->lo }, { RING->hi + PAGE, (u64)__executable_start }, { helper_end(), (u64)RING }, { ring_end(), TASK_SIZE } };
	for (int i = 0; i < 4; i++)
		if ((e = reserve(gaps[i][0], gaps[i][1])) < 0)
			return e;
	e = sys(SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, (u64)&m, sizeof m, 0, 0);
	if (e < 0)
		return e;
	return sys(SYS_capset, (u64)&header, (u64)none, 0, 0, 0, 0);
}

static void answer(struct call *c, unsigned char *buffer, int *fd)
{
	u64 *a = c->args;
	trouble = 0;
	switch (c->code) {
	case CALL_SYSCALL: c->value = sys(a[0], a[1], a[2], a[3], a[4], a[5], a[6]); break;
	case CALL_PLACE: c->value = place(a); break;
	case CALL_LOAD: c->value = a[1] - acc_copy(buffer, (void *)a[0], a[1]); break;
	case CALL_STORE: c->value = a[1] - acc_copy((void *)a[0], buffer, a[1]); break;
	case CALL_STRING: c->value = string(a[0], a[1], buffer); break;
	case CALL_TOUCH: c->value = touch(a[0], a[1]); break;
	case CALL_POPULATE: c->value = populate(a[0], a[1], a[2]); break;
	case CALL_WORD: c->value = word(a[0], a[1], a[2], a[3]); break;
	case CALL_FORK: {
		i64 pid = fork_into(a[0], fd);
		if (pid == 0) // the child answers nothing
			return;
		c->value = pid;
		break;
	}
	case CALL_FORCE: c->value = force(a[0], a[1], buffer); break;
	case CALL_REMAP: c->value = remap(a); break;
	case CALL_CONFIGURE: c->value = configure(a[0], a[1]); break;
	default: c->value = 0;
	}
	c->trouble = trouble;
}

static void loop(void)
{
	int fd = FD_COMMAND;
	unsigned char b;
	for (;;) {
	wait:
		if (sys(SYS_read, fd, (u64)&b, 1, 0, 0, 0) != 1)
			die(0);
		for (u64 i = 0, n = RING->count; i < n && i < MAX_CALLS; i++) {
			int was = fd;
			struct call *c = &RING->calls[i];
			u64 code = c->code;
			answer(c, RING->buffers[i], &fd);
			if (fd != was)
				goto wait; // the child
			if (code == CALL_EXIT) {
				sys(SYS_write, FD_DONE, (u64)&b, 1, 0, 0, 0);
				die(0);
			}
		}
		if (sys(SYS_write, FD_DONE, (u64)&b, 1, 0, 0, 0) != 1)
			die(1);
	}
}

// prepare runs on the helper's own stack: everything else goes.
__attribute__((used)) static void prepare(void)
{
	extern char __executable_start[];
	struct { void *handler; u64 flags; void *restorer; u64 mask; } act = { handler, 0x44000004, restorer, 0 };
	i64 at;
	sys(SYS_munmap, 0, (u64)__executable_start, 0, 0, 0, 0);
	sys(SYS_munmap, helper_end(), TASK_SIZE - helper_end(), 0, 0, 0, 0);
	if (sys(SYS_mmap, (u64)RING, ring_end() - (u64)RING, 3, 0x11, FD_RING, 0) != (i64)RING)
		die(2);
	for (int i = 0; i < 3; i++)
		if (sys(SYS_rt_sigaction, (int[]){ 4, 7, 11 }[i], (u64)&act, 0, 8, 0, 0))
			die(3);
	at = sys(SYS_mmap, 0, PAGE, 0, 0x22, -1, 0);
	sys(SYS_munmap, at, PAGE, 0, 0, 0, 0);
	RING->mmap_base = at + PAGE; // a whole page from the end, bottom up
	at = sys(SYS_mmap, PAGE, PAGE, 0, 0x22, -1, 0);
	sys(SYS_munmap, at, PAGE, 0, 0, 0, 0);
	RING->min = at; // a hint too low is raised
	if (sys(SYS_write, FD_DONE, (u64)"", 1, 0, 0, 0) != 1)
		die(4);
	loop();
}

static unsigned char stack[64 << 10] __attribute__((aligned(16)));

// start begins on the kernel's stack. The first time, it asks for an address
// space that is the same each time, and begins again in it. argv[1] is "down"
// or "up".
__attribute__((used)) static void start(u64 *sp)
{
	enum { NO_RANDOMIZE = 0x0040000, COMPAT_LAYOUT = 0x0200000, PR_SET_THP_DISABLE = 41, RLIMIT_STACK = 3 };
	u64 argc = sp[0];
	char **argv = (char **)(sp + 1);
	u64 limit[2] = { 8 << 20, 8 << 20 };
	if (argc == 2) {
		char *again[] = { argv[0], argv[1], "again", 0 }, *env[] = { 0 };
		sys(SYS_setrlimit, RLIMIT_STACK, (u64)limit, 0, 0, 0, 0);
		sys(SYS_prctl, PR_SET_THP_DISABLE, 1, 0, 0, 0, 0);
		sys(SYS_personality, NO_RANDOMIZE | (argv[1][0] == 'u' ? COMPAT_LAYOUT : 0), 0, 0, 0, 0, 0);
		sys(SYS_execve, (u64)"/proc/self/exe", (u64)again, (u64)env, 0, 0, 0);
		die(5);
	}
	asm volatile("mov %0,%%rsp\n xor %%ebp,%%ebp\n call prepare" ::"r"(stack + sizeof stack) : "memory");
	__builtin_unreachable();
}

asm(".text\n.globl _start\n_start: mov %rsp,%rdi\n and $-16,%rsp\n call start\n");
