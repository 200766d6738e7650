// A kernel of the tests: entered as Linux is in 64-bit mode, it prints on the
// serial port what it was given, takes timer interrupts, and resets the machine. What
// else it does is said by words of its command line. Ring 0 may be emulated, so it is
// a few plain instructions at a time.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

__asm__(".section .entry,\"ax\"\n"
	".globl entry\n"
	"entry: mov %rsi, %rdi\n"
	"call kernel\n"
	"1: jmp 1b\n"
	".globl tick\n"
	"tick: push %rax\n"
	"incl ticks(%rip)\n"
	"mov $0x20, %al\n"
	"out %al, $0x20\n"
	"pop %rax\n"
	"iretq\n"
	".text\n");

volatile u32 ticks __attribute__((section(".data"))) = 0;
extern char tick[];
static u64 idt[2 * 0x21] __attribute__((section(".data"), aligned(16))) = {1};

static void outb(u16 port, u8 v) { __asm__ volatile("outb %0, %1" ::"a"(v), "Nd"(port)); }

static u8 inb(u16 port)
{
	u8 v;
	__asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}

static void putc(char c)
{
	while (!(inb(0x3fd) & 0x20))
		;
	outb(0x3f8, c);
}

static void puts(const char *s)
{
	while (*s)
		putc(*s++);
}

static void hex(u64 v)
{
	int shift = 60;

	while (shift > 0 && !(v >> shift))
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		putc("0123456789abcdef"[v >> shift & 15]);
}

static int has(const char *line, const char *word)
{
	for (; *line; line++) {
		const char *a = line, *b = word;
		while (*b && *a == *b)
			a++, b++;
		if (!*b)
			return 1;
	}
	return 0;
}

static void memory_map(const u8 *params)
{
	int i, n = params[0x1e8];

	for (i = 0; i < n; i++) {
		const u8 *e = params + 0x2d0 + 20 * i;
		puts("e820 ");
		hex(*(const u64 *)e);
		puts(" ");
		hex(*(const u64 *)(e + 8));
		puts(" ");
		hex(*(const u32 *)(e + 16));
		puts("\n");
	}
}

static void initrd(const u8 *params)
{
	const u8 *p = (const u8 *)(u64) * (const u32 *)(params + 0x218);
	u32 n = *(const u32 *)(params + 0x21c), i;
	u64 sum = 0;

	for (i = 0; i < n; i++)
		sum = sum * 31 + p[i];
	puts("initrd ");
	hex(n);
	puts(" ");
	hex(sum);
	puts("\n");
}

static void processors(void)
{
	const u32 *p = (const u32 *)0xf0000;
	const u8 *t, *e;
	u32 n = 0, i, count;
	u8 sum = 0;

	if (*p != 0x5f504d5f) // _MP_
		return;
	t = (const u8 *)(u64)p[1];
	for (i = 0; i < *(const u16 *)(t + 4); i++)
		sum += t[i];
	count = *(const u16 *)(t + 34);
	for (e = t + 44, i = 0; i < count; i++) {
		if (*e == 0)
			n++;
		e += *e == 0 ? 20 : 8;
	}
	puts("processors ");
	hex(n);
	puts(" ");
	hex(sum);
	puts(" ");
	hex(e - t - *(const u16 *)(t + 4));
	puts("\n");
}

static void timer(void)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) idtr = {sizeof idt - 1, (u64)idt};
	u64 h = (u64)tick;

	idt[2 * 0x20] = (h & 0xffff) | 0x10ul << 16 | 0x8eul << 40 | (h >> 16 & 0xffff) << 48;
	idt[2 * 0x20 + 1] = h >> 32;
	__asm__ volatile("lidt %0" ::"m"(idtr));
	outb(0x20, 0x11);
	outb(0x21, 0x20);
	outb(0x21, 4);
	outb(0x21, 1);
	outb(0x21, 0xfe); // the timer alone
	outb(0x43, 0x34);
	outb(0x40, 0);
	outb(0x40, 0x40); // 73 times a second
	while (ticks < 3)
		__asm__ volatile("sti; hlt; cli" ::: "memory");
	puts("timer ticks\n");
}

static void echo(void)
{
	char c;

	puts("say: ");
	do {
		while (!(inb(0x3fd) & 1))
			;
		c = inb(0x3f8);
		putc(c);
	} while (c != '\n');
}

void kernel(const u8 *params)
{
	const char *line = (const char *)(u64) * (const u32 *)(params + 0x228);

	puts("kernel is up\n");
	if (*(const u32 *)(params + 0x202) == 0x53726448) // HdrS
		puts("header is there\n");
	puts("line ");
	puts(line);
	puts("\n");
	memory_map(params);
	initrd(params);
	processors();
	if (has(line, "timer"))
		timer();
	if (has(line, "echo"))
		echo();
	if (has(line, "stuck"))
		__asm__ volatile("cli; hlt");
	if (has(line, "spin"))
		for (;;)
			(*(volatile u64 *)0x9000)++;
	if (has(line, "triple"))
		__asm__ volatile("ud2");
	if (has(line, "wide"))
		__asm__ volatile("lock cmpxchg16b (%0)" ::"r"(0x9000), "a"(0), "b"(0), "c"(0), "d"(0) : "memory");
	puts("bye\n");
	outb(0x64, 0xfe);
}
