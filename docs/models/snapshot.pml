/*
 * snapshot.pml: live snapshots of a Memory as the code has them (R7, R11, R15).
 *
 * It differs from a door that every Go store asks about its page: a Go store asks
 * one bit of the page, writable, which is set outside of the section by whoever has made
 * sure that the page is not armed, and cleared by the window that arms it; and claims
 * are kept from a window by a reader-writer lock (the gate), not by sections.
 *
 * Modelled: NP pages, each with the kernel's write-protect bit, a state (PLAIN, ARMED,
 * CLAIMED), and the bit writable. A vCPU, or a system call, stores through the registered
 * mapping: a protected page faults, and a handler claims it, copies it to every open
 * snapshot that lacks it, unprotects. A Go writer stores to page p, in a section,
 * if its bit is set and the door is open; else it leaves, disarms the page as a
 * handler does, sets the bit under pop unless the page is armed again, and starts over.
 * A sweeper copies the rest of each snapshot and leaves it armed; a discard copies and
 * disarms, and clears the page without a claim. A second snapshot opens while the
 * first is swept. What a device holds (page 0, with -DPINNED) it stores to untrapped,
 * unless vCPUs are paused; it is made ready, as a Go store is, after it is held.
 *
 * Properties
 *  P1 a page is stored to only after every open snapshot that needs it has it
 *  P2 each layer holds the value of its snapshot's instant
 *  P3 each page is copied at most once per snapshot
 *
 * ./run.sh snapshot.pml; -DPINNED; -DBREAK_n must fail:
 *  BREAK_1 the window does not shut the door for stores
 *  BREAK_2 no grace period of sections after the door is shut
 *  BREAK_3 the window does not take the gate
 *  BREAK_4 the window does not clear writable
 *  BREAK_5 writable is set without asking again whether the page is armed
 *  BREAK_6 the window does not take pop
 *  BREAK_7 unprotect before the copy
 *  BREAK_8 no claim
 *  BREAK_9 (with -DPINNED) held pages that are armed still are taken for pinned
 */
#ifndef NP
#define NP 2
#endif
#define NS 2
#ifndef STORES
#define STORES 2
#endif
#define BIT(n) (1 << (n))

#define PLAIN   0
#define ARMED   1
#define CLAIMED 2

byte mem[NP], st[NP];
bool wp[NP], writable[NP];
bool shut, paused, gateX, popX, held, ready;
byte gateS, popS, inside, nsnap;
byte has[NS], layer[NS * NP];
byte want[NS * NP];

#define SAFE(p) (((nsnap < 1) || (has[0] & BIT(p))) && ((nsnap < 2) || (has[1] & BIT(p))))

inline gate_shared() {
#ifdef BREAK_3
	skip
#else
	atomic { !gateX -> gateS++ }
#endif
}
inline gate_done() {
#ifdef BREAK_3
	skip
#else
	gateS--
#endif
}

inline copy(s, p) {
	if
	:: !(has[s] & BIT(p)) ->
		layer[s * NP + p] = mem[p];
		atomic {
			assert(!(has[s] & BIT(p)));                                   /* P3 */
			assert(s >= nsnap || layer[s * NP + p] == want[s * NP + p]);  /* P2 */
			has[s] = has[s] | BIT(p)
		}
	:: else
	fi
}

/* claim, copy, and leave in state `to`; ok = 0: somebody else has it, or not armed */
inline save(p, to) {
	if
#ifdef BREAK_8
	:: atomic { st[p] == ARMED -> ok = 1 }
#else
	:: atomic { st[p] == ARMED -> st[p] = CLAIMED; ok = 1 }
#endif
#ifdef BREAK_7
		if :: to == PLAIN -> wp[p] = 0 :: else fi;
#endif
		n = nsnap;
		if :: n >= 1 -> copy(0, p) :: else fi;
		if :: n >= 2 -> copy(1, p) :: else fi;
		if :: to == PLAIN -> wp[p] = 0 :: else fi;
		st[p] = to
	:: else -> ok = 0
	fi;
	n = 0
}

inline disarm(p) { gate_shared(); save(p, PLAIN); ok = 0; gate_done() }

proctype VCPU() {
	byte i, p, n;
	bool ok;
	do
	:: i == STORES -> break
	:: i < STORES ->
		if :: p = 0 :: p = NP - 1 fi;
again:		if
		:: atomic { !paused && !wp[p] ->
			assert(SAFE(p));                                              /* P1 */
			mem[p] = 2 * i + 1; i++; p = 0 }
		:: wp[p] ->                                                     /* fault */
			gate_shared();
			save(p, PLAIN);
			if
			:: !ok && st[p] == PLAIN -> wp[p] = 0                         /* its event was late */
			:: else
			fi;
			ok = 0;
			gate_done();
			goto again
		fi
	od
}

proctype GoWriter() {
	byte i, p, n;
	bool ok;
	do
	:: i == STORES -> break
	:: i < STORES ->
		if :: p = 0 :: p = NP - 1 fi;
again:		inside++;
		if
#ifndef BREAK_1
		:: shut -> inside--; !shut; goto again
#endif
		:: (
#ifdef BREAK_1
		true
#else
		!shut
#endif
		) && writable[p] ->
			atomic { assert(SAFE(p)); mem[p] = 2 * i + 2 };                 /* P1 */
			atomic { i++; p = 0; inside-- }
		:: !writable[p] &&
#ifdef BREAK_1
			true
#else
			!shut
#endif
			-> inside--;
			do
			:: st[p] != PLAIN -> disarm(p)
			:: st[p] == PLAIN -> break
			od;
			atomic { !popX -> popS++ };
#ifdef BREAK_5
			writable[p] = 1;
#else
			if :: st[p] == PLAIN -> writable[p] = 1 :: else fi;
#endif
			popS--;
			goto again
		fi
	od
}

#ifdef PINNED
/* A device that holds page 0. */
proctype Device() {
	byte n, p;
	bool ok;
	held = 1;
	do
	:: st[p] != PLAIN -> disarm(p)
	:: else ->
		atomic { !popX -> popS++ };
		if
		:: st[p] == PLAIN -> popS--; break
		:: else -> popS--
		fi
	od;
	ready = 1;
	atomic { !paused -> assert(SAFE(0)); mem[0] = 9 };                            /* P1 */
	atomic { !paused -> assert(SAFE(0)); mem[0] = 10 }
}
#endif

/* A discard: it excludes windows (Memory.layout), disarms, and empties the page
   while no Go store can find it. */
bool layout;
proctype Discard() {
	byte n, p;
	bool ok;
	p = NP - 1;
	atomic { !layout -> layout = 1 };
	do
	:: st[p] != PLAIN -> disarm(p)
	:: else -> break
	od;
	atomic { !popX && popS == 0 -> popX = 1 };
	writable[p] = 0;
	inside == 0;
	atomic { assert(SAFE(p)); mem[p] = 0 };                                       /* P1 */
	popX = 0;
	layout = 0
}

proctype Sweeper(byte s) {
	byte p, n;
	bool ok;
	do
	:: p == NP -> break
	:: p < NP && (has[s] & BIT(p)) -> p++
	:: p < NP && !(has[s] & BIT(p)) ->
		gate_shared(); save(p, ARMED); ok = 0; gate_done()
	od
}

#ifdef PINNED
#ifdef BREAK_9
#define IS_PINNED(p) ((p) == 0 && held)
#else
#define IS_PINNED(p) ((p) == 0 && held && st[p] == PLAIN)
#endif
#else
#define IS_PINNED(p) (false)
#endif

proctype Snapshots() {
	byte s, p;
	bool pinned;
	do
	:: s == NS -> break
	:: s < NS ->
		atomic { !layout -> layout = 1 };
		paused = 1;
#ifndef BREAK_6
		atomic { !popX && popS == 0 -> popX = 1 };
#endif
		shut = 1;
#ifndef BREAK_2
		inside == 0;
#endif
#ifndef BREAK_3
		atomic { !gateX -> gateX = 1 };
		gateS == 0;
#endif
		pinned = IS_PINNED(0);
		p = 0;
		do
		:: p == NP -> break
		:: p < NP && !(p == 0 && pinned) ->
#ifndef BREAK_4
			writable[p] = 0;
#endif
			if :: st[p] == PLAIN -> wp[p] = 1; st[p] = ARMED :: else fi;
			p++
		:: p < NP && p == 0 && pinned -> st[p] = PLAIN; p++
		od;
		p = 0;
		if
		:: pinned -> layer[s * NP] = mem[0]; has[s] = has[s] | BIT(0)
		:: else
		fi;
		atomic {
			p = 0;
			do
			:: p < NP ->
				want[s * NP + p] = mem[p];
				assert(!(has[s] & BIT(p)) || layer[s * NP + p] == mem[p]);  /* P2 */
				p++
			:: else -> break
			od;
			p = 0; pinned = 0; nsnap++
		};
#ifndef BREAK_3
		gateX = 0;
#endif
#ifndef BREAK_6
		popX = 0;
#endif
		shut = 0;
		paused = 0;
		layout = 0;
		run Sweeper(s);
		s++
	od
}

init {
	atomic {
		writable[0] = 1;
		run VCPU();
		run GoWriter();
		run Snapshots();
#ifdef PINNED
		run Device()
#else
		run Discard()
#endif
	}
}
