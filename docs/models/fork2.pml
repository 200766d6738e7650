/*
 * fork2.pml: O(1) fork over two levels of tables below the root (R1, R4, R6).
 *
 * shared/models/fork.pml has one level, and one writer per side and leaf. What
 * it cannot show: a moved table that leads to a table with stale writable
 * leaves, and two lookups of one side at one leaf while a fork is under way.
 *
 * Modelled, as in pagetable/path.go and guestmem/{fault,path,fork}.go: a root
 * has one entry, which leads to a PD of one entry, which leads to a PT of two
 * leaves, which lead to frames. Sections 0-2 are of parent P, section 3 of child
 * C. A writer stores if the path is writable, else it faults: it owns the path
 * under the side's `tables` mutex (copy if the count is above 1, else move),
 * then makes the frame writable in place (count 1) or replaces it by a copy.
 * Fork marks, shares the root's entry under the mutex, waits for P's sections,
 * makes the child and unmarks. A dropped reference waits for the sections of
 * both sides that were open (the epoch's batches mix spaces) and is given up at
 * any time after. A reference that a copy took in an unpublished table is
 * dropped at once.
 *
 * Properties
 *  P1 a store reaches no frame that the other side reaches at the same leaf
 *  P2 at the end each side reads what it stored last; a child that stored
 *     nothing reads what was there when Fork returned
 *  P3 nobody walks to a free table or frame; P reads no value of C's
 *  P4 at the end every count equals the number of references to it
 *
 * Run: ./run.sh fork2.pml [-Dflags]
 *      scenarios: -DPA=n -DPB=n (stores of two writers of P at leaf 0), -DPC=n (of P at
 *                 leaf 1), -DCL=i -DCN=n (of C at leaf i), -DAFTER (P begins as after an
 *                 earlier fork whose child is gone: the root's entry without W),
 *                 -DLOOK (a reader of P's leaf 0; not with PC)
 *      must fail:
 *  BREAK_1  a move keeps W above the leaves where the count is 1 (R6 as first written)
 *  BREAK_2  a move keeps W of a leaf whatever the count
 *  BREAK_3  StartRead is not repeated under the `tables` mutex: a path is owned between
 *           Share and the end of the fork (-DAFTER -DPB=1 -DPC=1 -DCN=0)
 *  BREAK_4  a reference dropped at once for data (-DPB=1)
 *  BREAK_5  a reference dropped at once for tables
 *  BREAK_6  a copy keeps W of its leaves
 *  BREAK_7  no grace period in fork
 *  BREAK_8  a copied table's transient reference to the table below is never dropped
 */
#ifndef PA
#define PA 1
#endif
#ifndef PB
#define PB 0
#endif
#ifndef PC
#define PC 0
#endif
#ifndef CL
#define CL 0
#endif
#ifndef CN
#define CN 1
#endif
#ifndef ND
#define ND 4                    /* PDs */
#endif
#ifndef NT
#define NT 4                    /* PTs */
#endif
#ifndef NF
#define NF 5                    /* frames */
#endif
#define NQ 8

#define P 0
#define C 1

#define ENTRY(x,w) ((x) * 2 + (w))
#define TO(e)      ((e) / 2)
#define W(e)       ((e) & 1)
#define BIT(n)     (1 << (n))
#define OFP        7

byte cur[2], root[3];
byte pd[ND + 1], dcount[ND + 1];
byte leaf[2 * (NT + 1)], tcount[NT + 1];
byte val[NF + 1], fcount[NF + 1];
bool marked, tables[2];
byte open, waiting;

#define DATA   1
#define PT     2
#define PD     3
#define MOVEDT 4
#define MOVEDD 5
byte qkind[NQ], qid[NQ], qwait[NQ];

bool alive;                     /* ghost: Fork has returned */
byte clock;                     /* ghost: stores so far */
byte last[4];                   /* ghost: last value that side s stored at leaf i: last[2*s+i] */
byte base[2];                   /* ghost: what was there when Fork returned */
bool stored[2];                 /* ghost: the child has stored at leaf i */
byte childs;                    /* ghost: bit v, the child stored value v */
byte busy;

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

inline putframe(f) { assert(fcount[f] > 0); fcount[f]--; if :: fcount[f] == 0 -> val[f] = 0 :: else fi }
inline putpt(t) {
	assert(tcount[t] > 0); tcount[t]--;
	if
	:: tcount[t] == 0 ->
		putframe(TO(leaf[2 * t])); putframe(TO(leaf[2 * t + 1]));
		leaf[2 * t] = 0; leaf[2 * t + 1] = 0
	:: else
	fi
}
inline putpd(d) {
	assert(dcount[d] > 0); dcount[d]--;
	if :: dcount[d] == 0 -> putpt(TO(pd[d])); pd[d] = 0 :: else fi
}
inline give(kind, id) {
	if
	:: kind == DATA -> putframe(id)
	:: kind == PT -> putpt(id)
	:: kind == PD -> putpd(id)
	:: kind == MOVEDT -> assert(tcount[id] == 1); tcount[id] = 0; leaf[2 * id] = 0; leaf[2 * id + 1] = 0
	:: kind == MOVEDD -> assert(dcount[id] == 1); dcount[id] = 0; pd[id] = 0
	fi
}
/* Hand over one reference, in an atomic. */
inline retire(kind, id) {
	if
#ifdef BREAK_4
	:: kind == DATA -> give(kind, id)
#endif
#ifdef BREAK_5
	:: kind != DATA -> give(kind, id)
#endif
	:: else ->
		q = 0;
		do
		:: qkind[q] == 0 -> break
		:: else -> q++; assert(q < NQ)
		od;
		qkind[q] = kind; qid[q] = id; qwait[q] = open; q = 0
	fi
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

/* If one of these asserts fails, raise ND, NT or NF. */
inline allocpd(x) {
	x = 1;
	do
	:: dcount[x] != 0 -> x++; assert(x <= ND)
	:: else -> break
	od;
	dcount[x] = 1
}
inline allocpt(x) {
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
inline walk(s, i) {
	atomic { k = cur[s] };
	atomic { e = root[k]; k = 0 };
	atomic { assert(dcount[TO(e)] > 0); d = pd[TO(e)] };                  /* P3 */
	atomic { assert(tcount[TO(d)] > 0); l = leaf[2 * TO(d) + i] }         /* P3 */
}
#define OWNED ((W(e)) && (W(d)))

#ifdef BREAK_2
#define KEEP(x) W(x)
#else
#define KEEP(x) (W(x) && fcount[TO(x)] == 1)
#endif
#ifdef BREAK_6
#define COPYW(x) W(x)
#else
#define COPYW(x) 0
#endif
#ifdef BREAK_1
#define KEEPUP(x) (W(x) && tcount[TO(x)] == 1)
#else
#define KEEPUP(x) 0
#endif

/* takept: an own PT out of the one that d leads to. pub: readers can reach d. */
inline takept() {
	atomic { allocpt(t); c = tcount[TO(d)] > 1 };
	atomic { l = leaf[2 * TO(d)]; if :: !c -> l = ENTRY(TO(l), KEEP(l)) :: else fi };
	atomic { m = leaf[2 * TO(d) + 1]; if :: !c -> m = ENTRY(TO(m), KEEP(m)) :: else fi };
	atomic {
		if
		:: c ->
			assert(fcount[TO(l)] > 0 && fcount[TO(m)] > 0);       /* P3 */
			fcount[TO(l)]++; fcount[TO(m)]++;
			l = ENTRY(TO(l), COPYW(l)); m = ENTRY(TO(m), COPYW(m))
		:: else
		fi;
		leaf[2 * t] = l; leaf[2 * t + 1] = m; l = 0; m = 0
	}
}

inline ownpath(r, s) {
	atomic { !tables[s] -> tables[s] = 1 };
	enter(r);
#ifdef BREAK_3
	k = 1;
#else
	k = !(marked && s == P);
#endif
	atomic { e = root[cur[s]]; d = pd[TO(e)] };     /* stable: edited under the mutex */
	if
	:: atomic { !k || OWNED -> skip }
	:: atomic { k && W(e) && !W(d) -> k = 0 };
		takept();
		atomic { pd[TO(e)] = ENTRY(t, 1);
			if :: c -> retire(PT, TO(d)) :: else -> retire(MOVEDT, TO(d)) fi }
	:: atomic { k && !W(e) -> k = 0; allocpd(n2); b = dcount[TO(e)] > 1 };
		atomic { d = pd[TO(e)];
			if
			:: b -> assert(tcount[TO(d)] > 0); tcount[TO(d)]++; d = ENTRY(TO(d), 0)
			:: else -> d = ENTRY(TO(d), KEEPUP(d))
			fi };
		if
		:: W(d) -> atomic { pd[n2] = d }                /* BREAK_1 only */
		:: else ->
			takept();
			atomic { pd[n2] = ENTRY(t, 1) };
			if
			:: b && c ->
#ifndef BREAK_8
				atomic { assert(tcount[TO(d)] > 1); tcount[TO(d)]-- }
#else
				skip
#endif
			:: else
			fi
		fi;
		atomic { root[cur[s]] = ENTRY(n2, 1);
			if
			:: t && !c -> retire(MOVEDT, TO(d))
			:: else
			fi;
			if :: b -> retire(PD, TO(e)) :: else -> retire(MOVEDD, TO(e)) fi }
	fi;
	atomic { k = 0; t = 0; n2 = 0; b = 0; c = 0; e = 0; d = 0; l = 0; leave(r) };
	tables[s] = 0
}

inline fault(r, s, i) {
	enter(r);
	if
	:: atomic { marked && s == P -> leave(r) }; !marked
	:: atomic { !(marked && s == P) -> skip };
		walk(s, i);
		if
		:: atomic { !OWNED -> e = 0; d = 0; l = 0; leave(r) };
			ownpath(r, s)
		:: atomic { OWNED && W(l) -> leave(r) }
		:: atomic { OWNED && !W(l) -> assert(fcount[TO(l)] > 0) };      /* P3 */
			if
			:: atomic { fcount[TO(l)] == 1 -> skip };               /* in place */
				atomic { if :: leaf[2 * TO(d) + i] == l -> leaf[2 * TO(d) + i] = ENTRY(TO(l), 1) :: else fi }
			:: atomic { else -> allocframe(t); val[t] = val[TO(l)] };
				atomic {
					if
					:: leaf[2 * TO(d) + i] == l -> leaf[2 * TO(d) + i] = ENTRY(t, 1); retire(DATA, TO(l))
					:: else -> fcount[t] = 0; val[t] = 0
					fi;
					t = 0
				}
			fi;
			leave(r)
		fi
	fi;
	atomic { e = 0; d = 0; l = 0 }
}

/* The frame that side s reaches at leaf i. */
#define REACH(s,i) TO(leaf[2 * TO(pd[TO(root[cur[s]])]) + i])

proctype Writer(byte r, s, i, n) {
	byte e, d, l, m, t, n2, k, q;
	bool b, c;
	do
	:: n == 0 -> break
	:: n > 0 ->
		qkind[3] == 0;                  /* bounds how far the reclaimer lags */
		enter(r);
		walk(s, i);
		if
		:: atomic { OWNED && W(l) ->
			assert(fcount[TO(l)] > 0);                              /* P3 */
			assert(!alive || REACH(1 - s, i) != TO(l));             /* P1 */
			clock++; val[TO(l)] = clock; last[2 * s + i] = clock;
			if :: s == C -> stored[i] = 1; childs = childs | BIT(clock) :: else fi;
			e = 0; d = 0; l = 0; n--; leave(r) }
		:: else ->
			atomic { e = 0; d = 0; l = 0; leave(r) };
			fault(r, s, i)
		fi
	od;
	busy--
}

/* Reads leaf 0 of P, which a writer may be replacing. */
proctype Looker(byte r) {
	byte e, d, l, k, q;
	enter(r);
	walk(P, 0);
	atomic { assert(fcount[TO(l)] > 0 && !(childs & BIT(val[TO(l)]))); e = 0; d = 0; l = 0; leave(r) };  /* P3 */
	busy--
}

proctype Forker() {
	byte i, j, n;
	marked = 1;
	atomic { !tables[P] -> tables[P] = 1 };
	atomic { i = root[cur[P]]; dcount[TO(i)]++; root[1] = ENTRY(TO(i), 0); root[2] = ENTRY(TO(i), 0); i = 0 };
	cur[P] = 1;
	tables[P] = 0;
#ifndef BREAK_7
	atomic { waiting = open & OFP };
	waiting == 0;
#endif
	atomic {
		root[0] = 0; cur[C] = 2; alive = 1;
		base[0] = val[REACH(C, 0)]; base[1] = val[REACH(C, 1)];
		marked = 0;
#if CN
		run Writer(3, C, CL, CN); busy++
#endif
	};
	atomic { busy == 0 && qkind[0] + qkind[1] + qkind[2] + qkind[3] + qkind[4] + qkind[5] + qkind[6] + qkind[7] == 0 ->
		for (i : 0 .. 1) {
			assert(val[REACH(P, i)] == last[i]);                    /* P2 */
			assert(val[REACH(C, i)] == (stored[i] -> last[2 + i] : base[i]));
		}
		for (i : 1 .. ND) { assert(dcount[i] == (TO(root[1]) == i) + (TO(root[2]) == i)) };    /* P4 */
		for (i : 1 .. NT) {
			n = 0; for (j : 1 .. ND) { n = n + (TO(pd[j]) == i) };
			assert(tcount[i] == n)
		};
		for (i : 1 .. NF) {
			n = 0; for (j : 2 .. (2 * NT + 1)) { n = n + (TO(leaf[j]) == i) };
			assert(fcount[i] == n)
		};
	}
}

init {
	atomic {
#ifdef AFTER
		root[0] = ENTRY(1, 0);
#else
		root[0] = ENTRY(1, 1);
#endif
		dcount[1] = 1; pd[1] = ENTRY(1, 1); tcount[1] = 1;
		leaf[2] = ENTRY(1, 1); fcount[1] = 1; leaf[3] = ENTRY(2, 1); fcount[2] = 1;
#if PA
		run Writer(0, P, 0, PA); busy++;
#endif
#if PB
		run Writer(1, P, 0, PB); busy++;
#endif
#if PC
		run Writer(2, P, 1, PC); busy++;
#endif
#ifdef LOOK
		run Looker(2); busy++;
#endif
		run Forker()
	}
}
