/*
 * rollback.pml: rollback of an address space to a snapshot (R1, R2, R4, R6).
 *
 * Modelled, as in guestmem/rollback.go and pagetable/{restore,revert}.go: a root
 * has one entry, which leads to a table of one leaf, which leads to a frame. At
 * the beginning the space P has written since the snapshot: its root leads to a
 * table of its own with a frame of its own; the snapshot has table 1 with frame 1,
 * whose value is 0. Rollback marks, exchanges P's root for a fresh one that leads to table 1 read-only,
 * waits for P's sections, sets the old root's own table right, exchanges the roots
 * back, waits, drops the fresh root, unmarks; with -DVIEW it drops the old root
 * instead. Then the snapshot is closed. A writer stores if the path and the leaf are
 * writable, else it faults: it owns the path under the `tables` mutex (copy if the
 * count is above 1, else move), then makes the frame writable in place (count 1) or
 * replaces it by a copy. What is dropped waits for sections that were open.
 *
 * Properties
 *  P1 no store reaches a frame that the snapshot reaches
 *  P2 at the end P reads its last store after Rollback had returned, and what the
 *     snapshot had if there was none
 *  P3 nobody walks to a free table or frame
 *  P4 at the end every count equals the number of references to it
 *
 * Run: ./run.sh rollback.pml [-Dflags]
 *      scenarios: -DVIEW; -DN=n stores of each of two writers (1)
 *      must fail:
 *  BREAK_1  no grace period after the roots are exchanged
 *  BREAK_2  no grace period before the fresh root is dropped and the snapshot closed
 *  BREAK_4  leaves keep write permission when they are set right
 *  BREAK_5  the fresh root's entry keeps write permission
 *  BREAK_6  the tree is not marked
 *      passes: BREAK_3  StartRead is not repeated under the `tables` mutex. What a
 *           path owned too early leads to is read-only, and dropped with the fresh root
 */
#ifndef N
#define N 1
#endif
#define NT 6
#define NF 6
#define NQ 8
#define ENTRY(x,w) ((x) * 2 + (w))
#define TO(e)      ((e) / 2)
#define W(e)       ((e) & 1)
#define BIT(n)     (1 << (n))

byte cur;                       /* which root is current: 0 old, 1 fresh */
byte root[2];
byte leaf[NT + 1], tcount[NT + 1], val[NF + 1], fcount[NF + 1];
bool marked, tables, kept = 1;  /* kept: the snapshot is open */
byte open, waiting;

#define DATA  1
#define TABLE 2
#define MOVED 3
byte qkind[NQ], qid[NQ], qwait[NQ];

byte clock, last, busy;         /* ghosts; last: of a store after Rollback returned */
bool returned;

inline enter(r) { atomic { open = open | BIT(r) } }
inline leave(r) {
	atomic {
		open = open & ~BIT(r); waiting = waiting & ~BIT(r);
		q = 0;
		do
		:: q < NQ -> qwait[q] = qwait[q] & ~BIT(r); q++
		:: else -> break
		od;
		q = 0
	}
}
inline barrier() { atomic { waiting = open }; waiting == 0 }

inline putframe(f) { assert(fcount[f] > 0); fcount[f]--; if :: fcount[f] == 0 -> val[f] = 0 :: else fi }
inline puttable(t_) {
	assert(tcount[t_] > 0); tcount[t_]--;
	if :: tcount[t_] == 0 -> putframe(TO(leaf[t_])); leaf[t_] = 0 :: else fi
}
inline give(kind, id) {
	if
	:: kind == DATA -> putframe(id)
	:: kind == TABLE -> puttable(id)
	:: kind == MOVED -> assert(tcount[id] == 1); tcount[id] = 0; leaf[id] = 0
	fi
}
inline retire(kind, id) {
	q = 0;
	do
	:: qkind[q] == 0 -> break
	:: else -> q++; assert(q < NQ)
	od;
	qkind[q] = kind; qid[q] = id; qwait[q] = open; q = 0
}
#define READY(i) (qkind[i] && qwait[i] == 0)
active proctype Reclaimer() {
	byte k;
end:	do
	:: atomic { READY(0) || READY(1) || READY(2) || READY(3) || READY(4) || READY(5) || READY(6) || READY(7) ->
		if
		:: READY(0) -> k = 0 :: READY(1) -> k = 1 :: READY(2) -> k = 2 :: READY(3) -> k = 3
		:: READY(4) -> k = 4 :: READY(5) -> k = 5 :: READY(6) -> k = 6 :: READY(7) -> k = 7
		fi;
		give(qkind[k], qid[k]); qkind[k] = 0; qid[k] = 0; k = 0 }
	od
}

inline alloctable(x) {
	x = 1;
	do
	:: tcount[x] != 0 -> x++; assert(x <= NT)
	:: else -> break
	od;
	tcount[x] = 1
}
inline allocframe(x) {
	x = 1;
	do
	:: fcount[x] != 0 -> x++; assert(x <= NF)
	:: else -> break
	od;
	fcount[x] = 1
}

/* Every load is a step. */
inline walk() {
	atomic { k = cur };
	atomic { e = root[k]; k = 0 };
	atomic { assert(tcount[TO(e)] > 0); l = leaf[TO(e)] }               /* P3 */
}

inline ownpath(r) {
	atomic { !tables -> tables = 1 };
	enter(r);
#ifdef BREAK_3
	k = 1;
#else
	k = !marked;
#endif
	atomic { e = root[cur] };
	if
	:: atomic { !k || W(e) -> skip }
	:: atomic { k && !W(e) -> alloctable(t); c = tcount[TO(e)] > 1 };
		atomic { l = leaf[TO(e)] };
		atomic {
			if
			:: c -> fcount[TO(l)]++; l = ENTRY(TO(l), 0)
			:: else -> l = ENTRY(TO(l), W(l) && fcount[TO(l)] == 1)
			fi;
			leaf[t] = l
		};
		atomic { root[cur] = ENTRY(t, 1);
			if :: c -> retire(TABLE, TO(e)) :: else -> retire(MOVED, TO(e)) fi }
	fi;
	atomic { k = 0; t = 0; c = 0; e = 0; l = 0; leave(r) };
	tables = 0
}

inline fault(r) {
	enter(r);
	if
	:: atomic { marked -> leave(r) }; !marked
	:: atomic { !marked -> skip };
		walk();
		if
		:: atomic { !W(e) -> e = 0; l = 0; leave(r) };
			ownpath(r)
		:: atomic { W(e) && W(l) -> leave(r) }
		:: atomic { W(e) && !W(l) -> assert(fcount[TO(l)] > 0) };       /* P3 */
			if
			:: atomic { fcount[TO(l)] == 1 -> skip };
				atomic { if :: leaf[TO(e)] == l -> leaf[TO(e)] = ENTRY(TO(l), 1) :: else fi }
			:: atomic { else -> allocframe(t); val[t] = val[TO(l)] };
				atomic {
					if
					:: leaf[TO(e)] == l -> leaf[TO(e)] = ENTRY(t, 1); retire(DATA, TO(l))
					:: else -> fcount[t] = 0; val[t] = 0
					fi;
					t = 0
				}
			fi;
			leave(r)
		fi
	fi;
	atomic { e = 0; l = 0 }
}

proctype Writer(byte r, n) {
	byte e, l, t, k, q;
	bool c;
	do
	:: n == 0 -> break
	:: n > 0 ->
		qkind[4] == 0;                  /* bounds how far the reclaimer lags */
		enter(r);
		walk();
		if
		:: atomic { W(e) && W(l) ->
			assert(fcount[TO(l)] > 0);                              /* P3 */
			assert(!kept || TO(l) != TO(leaf[1]));                  /* P1 */
			clock++; val[TO(l)] = clock;
			if :: returned -> last = clock :: else fi;
			e = 0; l = 0; n--; leave(r) }
		:: else ->
			atomic { e = 0; l = 0; leave(r) };
			fault(r)
		fi
	od;
	busy--
}

proctype Looker(byte r) {
	byte e, l, k, q;
	enter(r);
	walk();
	atomic { assert(fcount[TO(l)] > 0); e = 0; l = 0; leave(r) };          /* P3 */
	busy--
}

proctype Roller() {
	byte e, l, n, i, j;
#ifndef BREAK_6
	marked = 1;
#endif
	atomic { !tables -> tables = 1 };
	atomic { tcount[1]++;
#ifdef BREAK_5
		root[1] = ENTRY(1, 1);
#else
		root[1] = ENTRY(1, 0);
#endif
		cur = 1 };
	tables = 0;
#ifndef BREAK_1
	barrier();
#endif
#ifdef VIEW
	atomic { puttable(TO(root[0])); root[0] = 0 };
#else
	atomic { e = root[0]; l = leaf[TO(e)] };
	if
	:: atomic { W(e) && TO(l) != TO(leaf[1]) ->
		fcount[TO(leaf[1])]++;
#ifdef BREAK_4
		leaf[TO(e)] = ENTRY(TO(leaf[1]), 1);
#else
		leaf[TO(e)] = ENTRY(TO(leaf[1]), 0);
#endif
		putframe(TO(l)); e = 0; l = 0 }
	:: else
	fi;
	atomic { !tables -> cur = 0 };
#ifndef BREAK_2
	barrier();
#endif
	atomic { puttable(TO(root[1])); root[1] = 0 };
#endif
	atomic { marked = 0; returned = 1 };
	/* The snapshot is closed: it waits for no section of P. */
	atomic { kept = 0; puttable(1) };
	atomic { busy == 0 && qkind[0] + qkind[1] + qkind[2] + qkind[3] + qkind[4] + qkind[5] + qkind[6] + qkind[7] == 0 ->
		assert(val[TO(leaf[TO(root[cur])])] == last);                   /* P2 */
		for (i : 1 .. NT) { assert(tcount[i] == (TO(root[0]) == i) + (TO(root[1]) == i)) };    /* P4 */
		for (i : 1 .. NF) {
			n = 0; for (j : 1 .. NT) { n = n + (TO(leaf[j]) == i) };
			assert(fcount[i] == n)
		};
	}
}

init {
	atomic {
		tcount[1] = 1; leaf[1] = ENTRY(1, 1); fcount[1] = 1;
		tcount[2] = 1; leaf[2] = ENTRY(2, 1); fcount[2] = 1; val[2] = 100; clock = 100;
		root[0] = ENTRY(2, 1);
		run Writer(0, N); busy++;
		run Writer(1, N); busy++;
		run Looker(2); busy++;
		run Roller()
	}
}
