// Timers: setitimer by time spent, timer_create in all its ways.
#include "guest.h"

enum { TIMER_CREATE = 222, TIMER_SETTIME, TIMER_GETTIME, TIMER_GETOVERRUN, TIMER_DELETE, CLOCK_GETTIME = 228, GETRUSAGE = 98, GETITIMER = 36 };
enum { ALRM = 14, VTALRM = 26, PROF = 27, RT = 40 };

struct event { u64 value; int sig, notify, tid; char pad[44]; };
struct spec { long is, in, vs, vn; };
struct time { long s, n; };
static volatile int got, code, id, missed;
static volatile u64 value, handlerTID;

static void note(int sig, struct info *i, void *uc) {
	got++, code = i->code, id = (int)i->addr, missed = (int)(i->addr >> 32), value = *(u64 *)i->rest, handlerTID = tid();
	(void)sig, (void)uc;
}
static long now(int clock) { struct time t; WANT(CALL(CLOCK_GETTIME, clock, &t) == 0); return t.s * 1000000000 + t.n; }
// enough is longer than anything takes on a machine that does other things too.
static const long enough = 100000000000;
static void sleepMS(long ms) { struct time t = { ms / 1000, ms % 1000 * 1000000 }; while (CALL(NANOSLEEP, &t, &t) == -EINTR) ; }

static void byTimeSpent(void) {
	struct { long is, iu, vs, vu; } often = { 0, 5000, 0, 5000 }, off = { 0, 0, 0, 0 }, left;
	for (int which = 1; which <= 2; which++) {
		WANT(handle(which == 1 ? VTALRM : PROF, note, 4) == 0);
		got = 0;
		WANT(CALL(SETITIMER, which, &often, 0) == 0);
		// Time that passes asleep is not spent: 300 ms of it are no 60 signals. What is
		// spent on falling asleep and waking up may be much where others are busy, but
		// not each time.
		for (int i = 0; got = 0, sleepMS(300), got >= 30; i++) WANT(i < 20);
		got = 0;
		long began = now(1);
		while (got < 5) WANT(now(1) - began < enough);
		WANT(code == 0x80);
		WANT(CALL(GETITIMER, which, &left) == 0 && left.iu == 5000 && left.vs == 0 && left.vu <= 5000);
		WANT(CALL(SETITIMER, which, &off, 0) == 0);
		got = 0;
		for (began = now(1); now(1) - began < 30000000; ) ;
		WANT(got == 0);
	}
	WANT(CALL(SETITIMER, 3, &often, 0) == -EINVAL && CALL(GETITIMER, 3, &left) == -EINVAL);
	struct { long us, uu, ss, su, rest[14]; } usage;
	for (int i = 0; ; i++) {
		WANT(CALL(GETRUSAGE, 0, &usage) == 0 && i < 20);
		long system = usage.ss * 1000000 + usage.su;
		sleepMS(200);
		WANT(CALL(GETRUSAGE, 0, &usage) == 0);
		if (usage.ss * 1000000 + usage.su - system < 100000) break;
	}
}

static int create(int clock, int notify, int sig, u64 v) {
	struct event e = { v, sig, notify, (int)tid(), { 0 } };
	int t = -1;
	WANT(CALL(TIMER_CREATE, clock, &e, &t) == 0 && t >= 0);
	return t;
}

static void once(int clock, int notify) {
	int t = create(clock, notify, RT, 0x1234567890);
	struct spec soon = { 0, 0, 0, 20000000 }, left;
	WANT(handle(RT, note, 4) == 0);
	got = 0;
	long began = now(1);
	WANT(CALL(TIMER_SETTIME, t, 0, &soon, 0) == 0);
	WANT(CALL(TIMER_GETTIME, t, &left) == 0 && left.vs == 0 && left.vn <= 20000000 && left.in == 0);
	while (!got) WANT(now(1) - began < enough);
	WANT(now(1) - began >= 19000000 && code == -2 && id == t && value == 0x1234567890 && missed == 0);
	WANT(handlerTID == (u64)tid());
	WANT(CALL(TIMER_GETTIME, t, &left) == 0 && left.vs == 0 && left.vn == 0);
	WANT(CALL(TIMER_DELETE, t) == 0 && CALL(TIMER_DELETE, t) == -EINVAL && CALL(TIMER_GETTIME, t, &left) == -EINVAL);
}

// What expires while its signal is blocked is counted, and is one signal.
static void overrun(void) {
	int t = create(1, 0, RT, 5);
	u64 set = 1ul << (RT - 1), none = 0;
	struct spec often = { 0, 2000000, 0, 2000000 }, off = { 0, 0, 0, 0 }, left;
	WANT(CALL(SIGPROCMASK, 0, &set, 0, 8) == 0);
	got = 0;
	WANT(CALL(TIMER_SETTIME, t, 0, &often, 0) == 0);
	sleepMS(100);
	WANT(CALL(TIMER_SETTIME, t, 0, &often, &left) == 0 && left.in == 2000000); // and forgets what was pending
	sleepMS(100);
	struct info i;
	struct time zero = { 0, 0 };
	WANT(CALL(SIGTIMEDWAIT, &set, &i, 0, 8) == RT && i.code == -2 && (int)i.addr == t);
	int n = (int)(i.addr >> 32);
	WANT(n >= 48 && CALL(TIMER_GETOVERRUN, t) == n); // 50 expired, the first of which is the signal
	WANT(CALL(TIMER_SETTIME, t, 0, &off, 0) == 0);
	WANT(CALL(SIGTIMEDWAIT, &set, &i, &zero, 8) == -EAGAIN);
	WANT(CALL(TIMER_DELETE, t) == 0);
	WANT(CALL(SIGPROCMASK, 2, &none, 0, 8) == 0 && got == 0);
}

static void silentAndAbsolute(void) {
	int t = create(1, 1, 0, 0);
	struct spec at = { 0, 0, 0, 0 }, left;
	long then = now(1) + 10000000000000;
	at.vs = then / 1000000000, at.vn = then % 1000000000;
	WANT(CALL(TIMER_SETTIME, t, 1, &at, 0) == 0 && CALL(TIMER_GETTIME, t, &left) == 0 && left.vs >= 9000 && left.vs <= 10000);
	WANT(CALL(TIMER_DELETE, t) == 0);
	t = create(0, 0, RT, 0);
	got = 0;
	at.vs = 1, at.vn = 0; // long ago: at once
	WANT(CALL(TIMER_SETTIME, t, 1, &at, 0) == 0);
	for (long began = now(1); !got; ) WANT(now(1) - began < enough);
	WANT(CALL(TIMER_DELETE, t) == 0);
	int plain = -1;
	WANT(handle(ALRM, note, 4) == 0 && CALL(TIMER_CREATE, 1, 0, &plain) == 0);
	got = 0;
	struct spec soon = { 0, 0, 0, 1000000 };
	WANT(CALL(TIMER_SETTIME, plain, 0, &soon, 0) == 0);
	for (long began = now(1); !got; ) WANT(now(1) - began < enough);
	WANT(value == (u64)plain);
}

static void refused(void) {
	struct event bad = { 0, 65, 0, 0, { 0 } }, odd = { 0, 10, 9, 0, { 0 } }, stranger = { 0, 10, 4, 1, { 0 } };
	int t = -1;
	struct spec soon = { 0, 0, 0, 1000000000 }, left;
	WANT(CALL(TIMER_CREATE, 1, &bad, &t) == -EINVAL && CALL(TIMER_CREATE, 1, &odd, &t) == -EINVAL);
	WANT(CALL(TIMER_CREATE, 1, &stranger, &t) == -EINVAL && CALL(TIMER_CREATE, 77, 0, &t) == -EINVAL);
	WANT(CALL(TIMER_CREATE, 1, 8, &t) == -EFAULT && CALL(TIMER_CREATE, 1, 0, 8) == -EFAULT);
	WANT(CALL(TIMER_SETTIME, 12345, 0, &soon, 0) == -EINVAL && CALL(TIMER_GETOVERRUN, 12345) == -EINVAL);
	WANT(CALL(TIMER_CREATE, 1, 0, &t) == 0);
	WANT(CALL(TIMER_SETTIME, t, 0, &soon, 0) == -EINVAL && CALL(TIMER_SETTIME, t, 0, 0, 0) == -EINVAL);
	WANT(CALL(TIMER_SETTIME, t, 0, 8, 0) == -EFAULT);
	// A child has none of them.
	int status;
	long child = CALL(FORK);
	if (child == 0) {
		long r = CALL(TIMER_GETTIME, t, &left);
		CALL(EXIT, r == -EINVAL ? 3 : 4);
	}
	WANT(CALL(WAIT4, child, &status, 0, 0) == child && status == 0x300);
	struct time c;
	WANT(CALL(CLOCK_GETTIME, ~pid() << 3 | 2, &c) == 0 && CALL(CLOCK_GETTIME, ~tid() << 3 | 6, &c) == 0);
	WANT(CALL(CLOCK_GETTIME, ~99999l << 3 | 2, &c) == -EINVAL);
}

int program(int argc, char **argv) {
	(void)argc, (void)argv;
	byTimeSpent();
	once(1, 0), once(0, 4), once(2, 0), once(3, 4), once(~tid() << 3 | 6, 4);
	overrun();
	silentAndAbsolute();
	refused();
	int t = create(1, 0, RT, 0); // armed at the end: nobody is left to be told
	struct spec often = { 0, 1000000, 0, 1000000 };
	WANT(CALL(TIMER_SETTIME, t, 0, &often, 0) == 0);
	say("timers are right\n");
	return 0;
}
