// Does what argv[1] says, of which none may do more than kill the program.
#include "guest.h"

static void overflow(volatile int n) { volatile char b[4096]; b[0] = n; overflow(n + 1); b[1] = n; }

int program(int argc, char **argv) {
	const char *how = argc > 1 ? argv[1] : "";
	if (same(how, "read")) return *(volatile int *)16;
	if (same(how, "write")) *(volatile int *)0x123456789000 = 1;
	if (same(how, "writetext")) *(volatile char *)program = 1;
	if (same(how, "readkernel")) return *(volatile int *)0xffffffff81000000;
	if (same(how, "readupper")) return *(volatile int *)0xffff800000000000;
	if (same(how, "noncanonical")) return *(volatile int *)0x8000000000000000;
	if (same(how, "jump")) ((void (*)(void))0x10)();
	if (same(how, "jumpdata")) { static char code[16] = { 0xc3 }; ((void (*)(void))code)(); }
	if (same(how, "jumpkernel")) ((void (*)(void))0xffffffff81000000)();
	if (same(how, "jumpnoncanonical")) ((void (*)(void))0x8000000000000000)();
	if (same(how, "jumptop")) ((void (*)(void))0x7fffffffffff)();
	if (same(how, "overflow")) overflow(0);
	if (same(how, "badstack")) __asm__ volatile("mov $0x8, %rsp\npush %rax");
	if (same(how, "badstacksignal")) { handle(10, (void *)program, 0); __asm__ volatile("mov $62,%%eax\nmov %0,%%edi\nmov $10,%%esi\nmov $0x8,%%rsp\nsyscall" :: "r"((u32)pid())); }
	if (same(how, "sigreturn")) __asm__ volatile("mov $15,%eax\nxor %esp,%esp\nsyscall");
	if (same(how, "sigreturngarbage")) { static u64 frame[256]; for (int i = 0; i < 256; i++) frame[i] = 0x8888888888888888ul + i; __asm__ volatile("mov %0,%%rsp\nmov $15,%%eax\nsyscall" :: "r"(frame + 1)); }
	if (same(how, "hlt")) __asm__ volatile("hlt");
	if (same(how, "cli")) __asm__ volatile("cli");
	if (same(how, "in")) __asm__ volatile("mov $0x80,%dx\nin %dx,%al");
	if (same(how, "out")) __asm__ volatile("mov $0x80,%dx\nout %al,%dx");
	if (same(how, "cr3")) __asm__ volatile("mov %cr3,%rax");
	if (same(how, "wrmsr")) __asm__ volatile("wrmsr");
	if (same(how, "lidt")) __asm__ volatile("lidt (%rsp)");
	if (same(how, "vmcall")) __asm__ volatile("vmcall");
	if (same(how, "int80")) __asm__ volatile("mov $20,%eax\nint $0x80");
	if (same(how, "int13")) __asm__ volatile("int $13");
	if (same(how, "int14")) __asm__ volatile("int $14");
	if (same(how, "int3")) __asm__ volatile("int3");
	if (same(how, "ud2")) __asm__ volatile("ud2");
	if (same(how, "div")) __asm__ volatile("xor %%ecx,%%ecx\nmov $1,%%eax\ncltd\nidiv %%ecx" ::: "eax", "ecx", "edx");
	if (same(how, "fpe")) { u32 csr = 0x1d00; __asm__ volatile("ldmxcsr %0\nmovss %0,%%xmm0\nxorps %%xmm1,%%xmm1\ndivss %%xmm1,%%xmm0" :: "m"(csr)); }
	if (same(how, "align")) __asm__ volatile("movaps 1(%rsp),%xmm0");
	if (same(how, "sysenter")) __asm__ volatile("sysenter");
	if (same(how, "lgdt")) __asm__ volatile("lgdt (%rsp)");
	if (same(how, "movss")) __asm__ volatile("mov $0x10,%eax\nmov %eax,%ss");
	if (same(how, "movds")) __asm__ volatile("mov $0x1234,%eax\nmov %eax,%ds");
	if (same(how, "farjump")) __asm__ volatile("push $0x10\npush $0x400000\nlretq");
	if (same(how, "iret")) __asm__ volatile("push $0\npush %rsp\npush $0x202\npush $8\npush $0x400000\niretq");
	if (same(how, "trap")) { __asm__ volatile("pushf\norl $0x100,(%rsp)\npopf\nnop\nnop"); }
	if (same(how, "iopl")) { __asm__ volatile("pushf\norl $0x3000,(%rsp)\npopf\ncli"); }
	if (same(how, "unmapself")) CALL(MUNMAP, 0x400000, 0x100000000);
	if (same(how, "unmapall")) CALL(MUNMAP, 0x10000, 0x7fffffff0000 - 0x10000);
	if (same(how, "execvewild")) { CALL(EXECVE, 8, 8, 8); CALL(EXECVE, argv[0], 8, 0); return 3; }
	if (same(how, "vsyscall")) { long now = ((long (*)(long *))0xffffffffff600400)(0), t = CALL(201, 0); return now <= t && now > t - 5 ? 42 : 43; }
	return 77;
}
