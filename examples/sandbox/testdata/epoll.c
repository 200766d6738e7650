// Epoll, eventfd and timerfd, each result on a line: the same here and under
// Linux itself.
#include "guest.h"

enum {
	POLL = 7, DUP = 32, FCNTL = 72, SOCKETPAIR = 53, SENDTO = 44, RECVFROM = 45, SOCKET = 41, GETPEERNAME = 52,
	EPOLLWAIT = 232, EPOLLCTL = 233, EPOLLPWAIT = 281, TIMERFD = 283, TIMERSET = 286, TIMERGET = 287, EVENTFD2 = 290,
	EPOLLCREATE1 = 291, PIPE2 = 293, EPOLLCREATE = 213, OPEN = 2, DUP2 = 33,
	ADD = 1, DEL = 2, MOD = 3, IN = 1, OUT = 4, ERR = 8, HUP = 16, ONESHOT = 1 << 30, ET = 1u << 31, NONBLOCK = 04000,
	SEMAPHORE = 1
};

static void show(const char *what, long v) { say(what); say(" "); sayNumber(v); say("\n"); }
#define SHOW(call) show(#call, call)

struct event { u32 events; u64 data; } __attribute__((packed));
static struct event ev[16];
static int p[2];
static char buf[70000];

static long ctl(int ep, int op, int fd, u32 events) {
	struct event e = { events, fd };
	return CALL(EPOLLCTL, ep, op, fd, &e);
}

// waits shows how many there are and what, without waiting.
static void waits_(const char *what, int ep, int most) {
	long n = CALL(EPOLLWAIT, ep, ev, most, 0);
	show(what, n);
	for (long i = 0; i < n; i++) { show("  of", ev[i].data); show("  what", ev[i].events); }
}
#define WAITS(ep) waits_("wait line " "" #ep, ep, 16)

static void levels(int ep) {
	CALL(PIPE2, p, NONBLOCK);
	SHOW(ctl(ep, ADD, p[0], IN)); SHOW(ctl(ep, ADD, p[0], IN)); SHOW(ctl(ep, ADD, p[1], OUT)); WAITS(ep);
	SHOW(ctl(ep, DEL, p[1], 0)); SHOW(ctl(ep, DEL, p[1], 0)); SHOW(ctl(ep, MOD, p[1], 0)); WAITS(ep);
	CALL(WRITE, p[1], "ab", 2); WAITS(ep); WAITS(ep);
	CALL(READ, p[0], buf, 1); WAITS(ep); CALL(READ, p[0], buf, 1); WAITS(ep);
	SHOW(ctl(ep, MOD, p[0], 0)); CALL(WRITE, p[1], "a", 1); WAITS(ep);
	SHOW(ctl(ep, MOD, p[0], IN | ONESHOT)); WAITS(ep); WAITS(ep); SHOW(ctl(ep, MOD, p[0], IN | ONESHOT)); WAITS(ep);
	SHOW(ctl(ep, MOD, p[0], IN)); CALL(CLOSE, p[1]); WAITS(ep);
	int copy = CALL(DUP, p[0]); CALL(CLOSE, p[0]); WAITS(ep); CALL(CLOSE, copy); WAITS(ep);
}

static void edges(int ep) {
	CALL(PIPE2, p, NONBLOCK);
	SHOW(ctl(ep, ADD, p[0], IN | ET)); WAITS(ep);
	CALL(WRITE, p[1], "a", 1); WAITS(ep); WAITS(ep); CALL(WRITE, p[1], "b", 1); WAITS(ep); WAITS(ep);
	CALL(READ, p[0], buf, 1); WAITS(ep); CALL(READ, p[0], buf, 9); WAITS(ep); CALL(WRITE, p[1], "c", 1); WAITS(ep);
	SHOW(ctl(ep, MOD, p[0], IN | ET)); WAITS(ep); WAITS(ep);
	SHOW(ctl(ep, MOD, p[0], IN | ET | ONESHOT)); WAITS(ep); CALL(WRITE, p[1], "d", 1); WAITS(ep);
	SHOW(ctl(ep, DEL, p[0], 0));
	SHOW(ctl(ep, ADD, p[1], OUT | ET)); WAITS(ep); WAITS(ep);
	while (CALL(WRITE, p[1], buf, 4096) > 0);
	WAITS(ep); CALL(READ, p[0], buf, 70000); WAITS(ep); WAITS(ep);
	CALL(CLOSE, p[0]); WAITS(ep); WAITS(ep); CALL(CLOSE, p[1]); WAITS(ep);
}

static void events(int ep) {
	u64 v = 3;
	int e = CALL(EVENTFD2, 2, NONBLOCK);
	SHOW(ctl(ep, ADD, e, IN | OUT)); WAITS(ep);
	SHOW(CALL(READ, e, buf, 4)); SHOW(CALL(READ, e, buf, 16)); SHOW(*(u64 *)buf); SHOW(CALL(READ, e, buf, 8)); WAITS(ep);
	SHOW(CALL(WRITE, e, &v, 8)); SHOW(CALL(WRITE, e, &v, 7)); SHOW(CALL(READ, e, buf, 8)); SHOW(*(u64 *)buf);
	v = -1; SHOW(CALL(WRITE, e, &v, 8)); v = -2; SHOW(CALL(WRITE, e, &v, 8)); v = 1; SHOW(CALL(WRITE, e, &v, 8)); WAITS(ep);
	SHOW(ctl(ep, MOD, e, IN | OUT | ET)); WAITS(ep); WAITS(ep); CALL(READ, e, buf, 8); WAITS(ep); WAITS(ep);
	v = 1; CALL(WRITE, e, &v, 8); WAITS(ep); WAITS(ep); CALL(WRITE, e, &v, 8); WAITS(ep); CALL(CLOSE, e);
	e = CALL(EVENTFD2, 2, SEMAPHORE | NONBLOCK);
	SHOW(CALL(READ, e, buf, 8)); SHOW(*(u64 *)buf); SHOW(CALL(READ, e, buf, 8)); SHOW(CALL(READ, e, buf, 8)); CALL(CLOSE, e);
	SHOW(CALL(EVENTFD2, 0, 2)); SHOW(CALL(EPOLLCREATE1, 1)); SHOW(CALL(EPOLLCREATE, 0));
}

static void errors(int ep) {
	int other = CALL(EPOLLCREATE1, 0), third = CALL(EPOLLCREATE1, 0), file = CALL(OPEN, "/proc/self/status", 0), null = CALL(OPEN, "/dev/null", 0);
	CALL(PIPE2, p, 0);
	SHOW(ctl(ep, ADD, ep, IN)); SHOW(ctl(ep, ADD, 99, IN)); SHOW(ctl(99, ADD, ep, IN)); SHOW(ctl(p[0], ADD, ep, IN)); SHOW(ctl(ep, 7, p[0], IN));
	SHOW(ctl(ep, ADD, null, IN)); (void)file; SHOW(CALL(EPOLLCTL, ep, ADD, p[0], 8)); SHOW(CALL(EPOLLCTL, ep, DEL, p[0], 8));
	SHOW(ctl(ep, ADD, other, IN)); SHOW(ctl(other, ADD, ep, IN)); WAITS(ep);
	SHOW(ctl(other, ADD, p[0], IN)); CALL(WRITE, p[1], "x", 1); WAITS(ep); WAITS(other); CALL(READ, p[0], buf, 1); WAITS(ep);
	SHOW(ctl(third, ADD, p[0], IN)); CALL(CLOSE, p[0]); CALL(CLOSE, third); CALL(CLOSE, other); WAITS(ep);
	SHOW(CALL(EPOLLWAIT, ep, ev, 0, 0)); SHOW(CALL(EPOLLWAIT, ep, ev, -1, 0)); SHOW(CALL(EPOLLWAIT, p[1], ev, 1, 0)); SHOW(CALL(EPOLLWAIT, 99, ev, 1, 0));
	SHOW(CALL(EPOLLPWAIT, ep, ev, 1, 5, buf, 3)); SHOW(CALL(EPOLLWAIT, ep, ev, 1, 5));
	CALL(PIPE2, p, 0); ctl(ep, ADD, p[1], OUT); SHOW(CALL(EPOLLWAIT, ep, 8, 1, -1)); SHOW(ctl(ep, DEL, p[1], 0)); CALL(CLOSE, p[0]); CALL(CLOSE, p[1]);
}

// fair: more ready files than there is room for all get their turn.
static void fair(int ep) {
	int fd[8], seen = 0;
	for (int i = 0; i < 8; i++) { struct event e = { IN, i }; fd[i] = CALL(EVENTFD2, 1, 0); CALL(EPOLLCTL, ep, ADD, fd[i], &e); }
	for (int round = 0; round < 4; round++) {
		SHOW(CALL(EPOLLWAIT, ep, ev, 2, 0));
		for (int i = 0; i < 2; i++) seen |= 1 << ev[i].data;
	}
	SHOW(seen);
	for (int i = 0; i < 8; i++) CALL(CLOSE, fd[i]);
	WAITS(ep);
}

// timers: one that is far off, for what is not there yet; nothing here is in a hurry.
static void timers(int ep) {
	static long set[4] = { 0, 0, 0, 5000000 }, far[4] = { 0, 0, 1000, 0 }, old[4], bad[4] = { 0, 0, 0, 1000000000 }, often[4] = { 0, 2000000, 0, 2000000 }, off[4];
	int t = CALL(TIMERFD, 1, NONBLOCK);
	SHOW(CALL(READ, t, buf, 8)); SHOW(CALL(TIMERSET, t, 0, bad, 0)); SHOW(CALL(TIMERSET, t, 8, set, 0)); SHOW(CALL(TIMERFD, 99, 0)); SHOW(CALL(TIMERFD, 1, 1));
	SHOW(ctl(ep, ADD, t, IN)); SHOW(CALL(TIMERSET, t, 0, far, 0)); WAITS(ep); SHOW(CALL(READ, t, buf, 8)); SHOW(CALL(TIMERGET, t, old)); SHOW(old[2] > 0 && old[2] <= 1000);
	SHOW(CALL(TIMERSET, t, 0, set, old)); SHOW(old[2] > 0); SHOW(CALL(EPOLLWAIT, ep, ev, 1, -1)); SHOW(CALL(READ, t, buf, 8)); SHOW(*(u64 *)buf); WAITS(ep);
	SHOW(CALL(TIMERGET, t, old)); SHOW(old[2] | old[3]); SHOW(CALL(TIMERSET, t, 0, often, 0)); SHOW(CALL(EPOLLWAIT, ep, ev, 1, -1));
	set[3] = 20000000; CALL(NANOSLEEP, set + 2, 0); SHOW(CALL(READ, t, buf, 8)); SHOW(*(u64 *)buf > 1); SHOW(CALL(TIMERSET, t, 0, off, old)); SHOW(old[1]); SHOW(old[3] > 0);
	SHOW(CALL(TIMERSET, ep, 0, set, 0)); SHOW(CALL(TIMERSET, t, 1, set, 0)); SHOW(CALL(EPOLLWAIT, ep, ev, 1, -1)); CALL(CLOSE, t);
}

// wakes: a child writes while the parent waits for ever; then a signal ends a wait: one
// that has come before it, and is unblocked by it alone, and one of many, of which the
// first that finds the parent asleep ends it.
static volatile int signals;
static void count(int sig) { (void)sig; signals++; }
static void wakes(int ep) {
	static long shortly[2] = { 0, 30000000 };
	int status;
	CALL(PIPE2, p, 0);
	ctl(ep, ADD, p[0], IN | ET);
	if (CALL(FORK) == 0) { CALL(NANOSLEEP, shortly, 0); CALL(WRITE, p[1], "w", 1); CALL(EXITGROUP, 0); }
	SHOW(CALL(EPOLLWAIT, ep, ev, 16, -1)); SHOW(ev[0].events); CALL(WAIT4, -1, &status, 0, 0); WAITS(ep);
	handle(10, count, 0x10000000);
	u64 usr1 = 1 << 9, none = 0, mask;
	long me = pid();
	CALL(SIGPROCMASK, 0, &usr1, 0, 8);
	if (CALL(FORK) == 0) { CALL(NANOSLEEP, shortly, 0); CALL(KILL, me, 10); CALL(EXITGROUP, 0); }
	SHOW(CALL(EPOLLPWAIT, ep, ev, 16, -1, &none, 8)); SHOW(signals); CALL(WAIT4, -1, &status, 0, 0);
	CALL(KILL, me, 10); SHOW(CALL(EPOLLWAIT, ep, ev, 16, 5)); SHOW(signals); // blocked
	SHOW(CALL(EPOLLPWAIT, ep, ev, 16, -1, &none, 8)); SHOW(signals);
	CALL(SIGPROCMASK, 2, &none, &mask, 8); SHOW(mask == usr1);
	long child = CALL(FORK);
	if (child == 0) for (;;) { CALL(NANOSLEEP, shortly, 0); CALL(KILL, me, 10); }
	SHOW(CALL(EPOLLWAIT, ep, ev, 16, -1)); CALL(KILL, child, 9); CALL(WAIT4, child, &status, 0, 0); SHOW(signals > 2);
	CALL(CLOSE, p[0]); CALL(CLOSE, p[1]);
}

static void pairs(int ep) {
	SHOW(CALL(SOCKETPAIR, 1, 1 | NONBLOCK, 0, p)); SHOW(CALL(READ, p[0], buf, 1)); SHOW(CALL(SENDTO, p[0], "abc", 3, 0x4000, 0, 0));
	SHOW(ctl(ep, ADD, p[1], IN | ET)); WAITS(ep); WAITS(ep); SHOW(CALL(RECVFROM, p[1], buf, 10, 0, 0, 0)); SHOW(CALL(RECVFROM, p[1], buf, 10, 0x40, 0, 0));
	SHOW(CALL(WRITE, p[1], "d", 1)); WAITS(ep); SHOW(CALL(READ, p[0], buf, 10)); SHOW(CALL(CLOSE, p[0])); SHOW(CALL(READ, p[1], buf, 1));
	SHOW(CALL(SENDTO, p[1], "x", 1, 0x4000, 0, 0)); CALL(CLOSE, p[1]);
	CALL(PIPE2, p, 0); SHOW(CALL(GETPEERNAME, p[0], buf, buf)); SHOW(CALL(SENDTO, p[1], "x", 1, 0, 0, 0)); SHOW(CALL(SENDTO, 99, "x", 1, 0, 0, 0));
}

int program(int argc, char **argv) {
	int ep = CALL(EPOLLCREATE1, 0);
	SHOW(ep);
	levels(ep); edges(ep); events(ep); errors(ep); fair(ep); timers(ep); wakes(ep); pairs(ep);
	say("epoll is right\n");
	return 0;
}
