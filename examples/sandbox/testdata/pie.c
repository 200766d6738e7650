// A static-pie program: wherever it is loaded, it finds its own data, its
// auxiliary vector and its arguments.
#include "guest.h"

static int data = 5;
static int zero[3000];

int program(int argc, char **argv) {
	u64 *p = (u64 *)argv + argc + 1;
	while (*p++) {}
	u64 entry = 0, phdr = 0, page = 0;
	for (; p[0]; p += 2) {
		if (p[0] == 9) entry = p[1];
		if (p[0] == 3) phdr = p[1];
		if (p[0] == 6) page = p[1];
	}
	extern void _start(void) __attribute__((visibility("hidden")));
	WANT(entry == (u64)_start && page == 4096 && phdr != 0 && *(u32 *)phdr != 0);
	WANT(data == 5 && zero[2999] == 0 && argc == 2 && same(argv[1], "x"));
	zero[2999] = data;
	say("static-pie\n");
	return zero[2999];
}
