package workload

// Prot is what may be done in an area; numerically PROT_*.
type Prot uint8

const (
	Read  Prot = 1
	Write Prot = 2
	Exec  Prot = 4
)

// PageSize is the size of every page that a workload touches.
const PageSize = 4096

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// A Subject is a memory manager to be measured.
type Subject interface {
	NewSpace() (Space, error)
	// Settle waits until the subject's own background work is over, so that
	// what was given back off the clock is not paid for on it.
	Settle()
	Close() error
}

// A Space is one address space of a Subject. Its methods may be called from
// several goroutines at once. Lengths are multiples of PageSize.
type Space interface {
	// Map maps private anonymous memory where the subject likes.
	Map(length uint64, prot Prot) (addr uint64, err error)
	// MapAt does so at addr, in place of what is there.
	MapAt(addr, length uint64, prot Prot) error
	Unmap(addr, length uint64) error
	Protect(addr, length uint64, prot Prot) error
	// Discard gives the pages back; the next access reads zeroes.
	Discard(addr, length uint64) error
	// Fault resolves a guest's write fault at addr.
	Fault(addr uint64) error
	Fork() (Space, error)
	// NewCopier returns a way to copy for one goroutine at a time.
	NewCopier(CopierKind) (Copier, error)
	Close() error
}

// CopierKind says how a Copier reaches what is per reader.
type CopierKind int

const (
	// Owned copiers keep their own state, as a vCPU's does.
	Owned CopierKind = iota
	// Pooled ones borrow it for each copy. A subject without such a
	// difference answers both alike.
	Pooled
)

// A Copier copies to and from guest memory. The loop over addresses is the
// subject's, so that no call through an interface stands between two copies.
type Copier interface {
	// ReadEach fills p from each address in turn.
	ReadEach(addrs []uint64, p []byte) error
	// WriteEach stores p at each address in turn.
	WriteEach(addrs []uint64, p []byte) error
	Close() error
}
