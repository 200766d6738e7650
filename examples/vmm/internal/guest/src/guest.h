// What the guest and its VMM agree on: guest.go has the same in Go, and a test
// compares the two.

typedef unsigned long u64;
typedef unsigned int u32;

#define CONFIG    0x110000ul // struct config
#define CONTROL   0x111000ul // struct control of vCPU 0; vCPU n is n pages behind
#define LOCKS     0x140000ul // a word for each page of shared areas
#define LEDGER    0x200000ul // of vCPU 0; vCPU n is n << 19 behind
#define ENTRIES   (1ul << 16) // of a ledger, 8 bytes each
#define MAX_AREAS 16
#define MAX_SEEDS 16
#define DOORBELL  0x5e0

enum { AREA_OFF, AREA_HALVES, AREA_SHARED };

struct area {
	u64 base, pages, kind;
	u64 table; // an entry for each page: generation | writer << 32 | lineage << 40
	u64 locks; // index of the first of its locks; of AREA_SHARED
	u64 id;    // in ledgers
};

struct config { // written by the VMM
	u64 stop;
	u64 lineage; // which of seeds is this guest's own
	u64 seeds[MAX_SEEDS];
	u64 nAreas;
	struct area areas[MAX_AREAS];
};

enum { CMD_NOP, CMD_RUN, CMD_FILL, CMD_VERIFY, CMD_ZERO, CMD_TOUCH, CMD_ROM };

struct control {
	u64 cmd, args[4]; // the VMM's
	u64 consumed;     // the VMM's: ledger entries that it has read
	u64 head, tail;   // entries begun, entries done
	u64 random;
	u64 result[2];
	u64 checked, errors;
	u64 bad[4]; // of the first error: page, word, what it is, what it should be
};
