// Forks without end, children too. With "wait" the first process stays to say
// that it was refused in the end.
#include "guest.h"

int program(int argc, char **argv) {
	long first = pid(), refused = 0;
	for (int i = 0; i < 4000; i++) {
		long child = CALL(FORK);
		if (child < 0) {
			refused = child;
			if (pid() != first) CALL(PAUSE);
			break;
		}
	}
	if (pid() != first) CALL(PAUSE);
	say(refused == -EAGAIN ? "EAGAIN\n" : refused == -ENOMEM ? "ENOMEM\n" : "not refused\n");
	return 0;
}
