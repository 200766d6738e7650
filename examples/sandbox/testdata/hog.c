// Uses memory up: by touching it ("touch"), by mapping ever more areas
// ("areas"), by children that each write everything ("fork").
#include "guest.h"

int program(int argc, char **argv) {
	const char *how = argc > 1 ? argv[1] : "touch";
	if (same(how, "areas")) {
		long n = 0;
		for (;; n++) {
			long p = CALL(MMAP, 0, 4096, 1 + (n & 1) * 2, 0x22, -1, 0);
			if (p < 0) { say(p == -ENOMEM ? "ENOMEM\n" : "other\n"); return 0; }
		}
	}
	u64 size = 1ul << 30;
	char *p = (char *)CALL(MMAP, 0, size, 3, 0x4022, -1, 0);
	WANT((long)p > 0);
	if (same(how, "fork")) {
		for (u64 i = 0; i < 8 << 20; i += 4096) p[i] = 1;
		for (int i = 0; i < 40; i++) {
			if (CALL(FORK) == 0) {
				for (u64 i = 0; i < 8 << 20; i += 4096) p[i] = 2;
				CALL(PAUSE);
			}
		}
		int killed = 0, status;
		while (CALL(WAIT4, -1, &status, 1 /* WNOHANG */) >= 0) {
			struct { long s, n; } ts = { 0, 20000000 };
			CALL(NANOSLEEP, &ts, 0);
			if (status == 9) killed++, status = 0;
			if (killed) break;
		}
		say(killed ? "killed\n" : "none killed\n");
		return 0;
	}
	for (u64 i = 0; i < size; i += 4096) p[i] = 1;
	say("it fits\n");
	return 0;
}
