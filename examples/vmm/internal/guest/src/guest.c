// The guest that the VMM runs when it is given no kernel. It runs in ring 3 of
// each vCPU, does what its control page says, and rings the doorbell.
//
// A page that it has written holds
//
//	word 0    page number
//	word 1    generation: how often it was written since it was zero
//	word 2    writer: the vCPU
//	word 3    seed of the guest that wrote it
//	word 4..  a sequence that follows from these four
//
// and its entry in a table has generation, writer and lineage, so that a page that
// is stale, lost, of another page or of another guest is found out by whoever
// looks at it next. The ledger has every page that was written, in order.

#include "guest.h"

#define WORDS 512

static void pause(void) { __asm__ volatile("pause" ::: "memory"); }
static void barrier(void) { __asm__ volatile("" ::: "memory"); }

static volatile struct config *config(void) { return (volatile struct config *)CONFIG; }

static u64 first_word(u64 page, u64 gen, u64 writer, u64 seed)
{
	u64 x = page * 0x9e3779b97f4a7c15ul ^ gen * 0xbf58476d1ce4e5b9ul ^ writer * 0x94d049bb133111ebul ^ seed;
	x ^= x >> 31;
	return x * 0xd6e8feb86659fd93ul | 1;
}

static u64 next_word(u64 x) { return x * 6364136223846793005ul + 1442695040888963407ul; }

static void bad(volatile struct control *c, u64 page, u64 word, u64 is, u64 want)
{
	if (c->errors++ == 0) {
		c->bad[0] = page;
		c->bad[1] = word;
		c->bad[2] = is;
		c->bad[3] = want;
	}
}

static void check_words(volatile struct control *c, u64 page, u64 gen, u64 writer, u64 seed)
{
	const volatile u64 *w = (const volatile u64 *)(page << 12);
	u64 head[4] = {page, gen, writer, seed};
	u64 i, x = first_word(page, gen, writer, seed);

	c->checked++;
	for (i = 0; i < WORDS; i++) {
		u64 want = i < 4 ? head[i] : x, is = w[i];
		if (is != want) {
			bad(c, page, i, is, want);
			return;
		}
		if (i >= 4)
			x = next_word(x);
	}
}

static void check_zero(volatile struct control *c, u64 page)
{
	const volatile u64 *w = (const volatile u64 *)(page << 12);
	u64 i;

	c->checked++;
	for (i = 0; i < WORDS; i++)
		if (w[i]) {
			bad(c, page, i, w[i], 0);
			return;
		}
}

static volatile u64 *entry_of(volatile struct area *a, u64 i) { return (volatile u64 *)a->table + i; }

static void check(volatile struct control *c, volatile struct area *a, u64 i)
{
	u64 e = *entry_of(a, i), page = (a->base >> 12) + i;

	if (e == 0)
		check_zero(c, page);
	else
		check_words(c, page, e & 0xffffffff, e >> 32 & 0xff, config()->seeds[e >> 40 & (MAX_SEEDS - 1)]);
}

// announce has the ledger say that a page is about to be written, and write that it
// is: what is below tail was written before tail was stored, and what is from head
// on is written after head is. A page is announced before it is looked at too, since a
// KVM that makes it writable for the sake of a load counts it as dirty then.
static void announce(volatile struct control *c, u64 id, volatile struct area *a, u64 i)
{
	volatile u64 *ledger = (volatile u64 *)(LEDGER + (id << 19));

	while (c->head - c->consumed >= ENTRIES)
		pause();
	ledger[c->head % ENTRIES] = a->id << 48 | i;
	barrier();
	c->head++;
	barrier();
}

static void write(volatile struct control *c, u64 id, volatile struct area *a, u64 i)
{
	u64 page = (a->base >> 12) + i, lineage = config()->lineage, seed = config()->seeds[lineage];
	u64 gen = (*entry_of(a, i) + 1) & 0xffffffff;
	volatile u64 *w = (volatile u64 *)(page << 12);
	u64 k, x = first_word(page, gen, id, seed);

	w[0] = page;
	w[1] = gen;
	w[2] = id;
	w[3] = seed;
	for (k = 4; k < WORDS; k++) {
		w[k] = x;
		x = next_word(x);
	}
	*entry_of(a, i) = gen | id << 32 | lineage << 40;
	barrier();
	c->tail++;
}

static void lock(volatile struct area *a, u64 i)
{
	volatile u32 *l = (volatile u32 *)LOCKS + a->locks + i;

	if (a->kind != AREA_SHARED)
		return;
	while (__atomic_exchange_n(l, 1, __ATOMIC_ACQUIRE))
		pause();
}

static void unlock(volatile struct area *a, u64 i)
{
	if (a->kind == AREA_SHARED)
		__atomic_store_n((volatile u32 *)LOCKS + a->locks + i, 0, __ATOMIC_RELEASE);
}

static u64 random(volatile struct control *c)
{
	u64 x = c->random;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	c->random = x;
	return x * 0x2545f4914f6cdd1dul >> 16;
}

// own is the part of an area that is a vCPU's: a half, or all of it.
static void own(volatile struct area *a, u64 id, u64 *first, u64 *end)
{
	u64 half = a->pages / 2;

	*first = a->kind == AREA_HALVES && id ? half : 0;
	*end = a->kind == AREA_HALVES && !id ? half : a->pages;
}

// run writes pages at random until it is stopped, or as many as args[0] says, each
// looked at before it is written over.
static void run(volatile struct control *c, u64 id)
{
	u64 n, first, end, i;

	for (n = 0; !config()->stop && (c->args[0] == 0 || n < c->args[0]); n++) {
		volatile struct area *a = &config()->areas[random(c) % config()->nAreas];
		if (a->kind == AREA_OFF)
			continue;
		own(a, id, &first, &end);
		i = first + random(c) % (end - first);
		lock(a, i);
		announce(c, id, a, i);
		check(c, a, i);
		write(c, id, a, i);
		unlock(a, i);
	}
}

// fill writes, and verify looks at, every page that is the vCPU's; of args[0] - 1
// alone if that is not 0. Shared pages are filled by vCPU 0.
static void each(volatile struct control *c, u64 id, int is_fill)
{
	u64 k, i, first, end;

	for (k = 0; k < config()->nAreas; k++) {
		volatile struct area *a = &config()->areas[k];
		if (a->kind == AREA_OFF || (c->args[0] && c->args[0] - 1 != k))
			continue;
		own(a, id, &first, &end);
		if (is_fill && a->kind == AREA_SHARED && id)
			continue;
		for (i = first; i < end; i++) {
			lock(a, i);
			if (is_fill) {
				announce(c, id, a, i);
				write(c, id, a, i);
			} else {
				check(c, a, i);
			}
			unlock(a, i);
		}
	}
}

// zero wants args[2] pages from args[1] of area args[0] on to be zero, and takes
// them for that from here on.
static void zero(volatile struct control *c)
{
	volatile struct area *a = &config()->areas[c->args[0]];
	u64 i;

	for (i = c->args[1]; i < c->args[1] + c->args[2]; i++) {
		check_zero(c, (a->base >> 12) + i);
		*entry_of(a, i) = 0;
	}
}

static void touch(volatile struct control *c)
{
	volatile u64 *at = (volatile u64 *)c->args[0];

	c->result[0] = *at;
	*at = c->args[1];
	c->result[1] = *at;
}

static void rom(volatile struct control *c)
{
	u64 i;

	for (i = 0; i < c->args[1]; i++)
		check_words(c, (c->args[0] >> 12) + i, 1, 0xff, c->args[2]);
}

void __attribute__((section(".entry"), noreturn)) entry(u64 id)
{
	volatile struct control *c = (volatile struct control *)(CONTROL + (id << 12));

	for (;;) {
		__asm__ volatile("outl %%eax, %%dx" ::"a"((u32)c->cmd), "d"(DOORBELL) : "memory");
		switch (c->cmd) {
		case CMD_RUN:
			run(c, id);
			break;
		case CMD_FILL:
			each(c, id, 1);
			break;
		case CMD_VERIFY:
			each(c, id, 0);
			break;
		case CMD_ZERO:
			zero(c);
			break;
		case CMD_TOUCH:
			touch(c);
			break;
		case CMD_ROM:
			rom(c);
			break;
		}
	}
}
