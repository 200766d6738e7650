package cow

import (
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
	"github.com/guestmm/guestmm/internal/invariants"
)

// ErrNoMemory says that guest memory is used up, or that the host has none to
// back more of it. It is the ENOMEM of Linux to errors.Is.
var ErrNoMemory error = noMemory{}

type noMemory struct{}

func (noMemory) Error() string        { return "out of guest memory" }
func (noMemory) Is(target error) bool { return target == syscall.ENOMEM }

// FrameStore is the host memory behind frames. It is called outside of
// sections and without locks.
type FrameStore interface {
	// Populate has the host back n frames from f on; they read as zero after.
	Populate(f addr.PFN, n uint64) error
	// GiveBack returns the memory of n frames from f on to the host.
	GiveBack(f addr.PFN, n uint64) error
}

// Options of a pool.
type Options struct {
	// GrowFrames is how many frames are populated at a time.
	GrowFrames uint64
	// KeepFree is how many free frames stay populated; what is above it is
	// given back to the host in batches.
	KeepFree uint64
	// Ahead has a goroutine populate the next frames before they are needed.
	Ahead bool
	// OnFreeTable, if not nil, gets table frames without references instead of
	// the pool: a view keeps them until they may be used again (R8).
	OnFreeTable func(addr.PFN)
}

// Pool is the frames of one region. Safe for concurrent use.
type Pool struct {
	*Counts
	arena arena.Arena // immutable
	store FrameStore  // immutable
	opts  Options     // immutable but for OnFreeTable, set before use

	mu       sync.Mutex
	free     []freeFrame // populated, newest last; mu
	runs     []run       // not populated, highest first; mu
	inRuns   uint64      // frames in runs; mu
	trimming bool        // somebody is giving back; mu
	ahead    uint64      // frames that are being populated ahead; mu
	trimFrom uint64      // free frames from which on somebody should; mu

	whole     []addr.PFN // free blocks, populated; newest last; mu
	freed     uint64     // frames ever put on the lists; mu
	lookAgain uint64     // when freed is so many, for a block in pieces; mu
	tally     []uint16   // scratch: free frames of each block; mu

	// away is how many callers have frames off the lists for a system call.
	// Who finds the lists empty waits for them: memory is not used up. mu
	away int
	back sync.Cond // L is mu; a caller's frames are on the lists again
}

// run is n frames from first on that the host does not back.
type run struct {
	first addr.PFN
	n     uint64
}

// NewPool returns a pool over the frames of a, all of them unpopulated, but for
// the first skip, which are never handed out.
func NewPool(a arena.Arena, store FrameStore, skip uint64, o Options) *Pool {
	p := &Pool{Counts: newCounts(a.First(), a.Len()), arena: a, store: store, opts: o}
	p.back.L = &p.mu
	p.opts.GrowFrames = max(1, o.GrowFrames)
	p.trimFrom = o.KeepFree + p.opts.GrowFrames
	if skip < a.Len() {
		p.runs = []run{{a.First() + addr.PFN(skip), a.Len() - skip}}
		p.inRuns = a.Len() - skip
	}
	return p
}

// OnFreeTable sets where table frames without references go.
//
// Preconditions: no table exists yet.
func (p *Pool) OnFreeTable(fn func(addr.PFN)) { p.opts.OnFreeTable = fn }

// FreeFrames returns how many frames are free, populated or not. Those in
// caches are not counted.
func (p *Pool) FreeFrames() (populated, unpopulated uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.populatedLocked(), p.inRuns + p.ahead
}

// Alloc takes len(out) frames with one reference each, all or none. Their bytes
// may be anything. Safe for concurrent use.
//
// Errors: ErrNoMemory, also where the host is out of it.
func (p *Pool) Alloc(out []addr.PFN) error {
	var buf [32]freeFrame
	got := 0
	for got < len(out) {
		n, err := p.allocSome(buf[:min(len(buf), len(out)-got)])
		for i := range n {
			out[got+i] = buf[i].frame()
			p.begin(out[got+i])
		}
		got += n
		if n == 0 {
			for _, f := range out[:got] {
				p.Drop(f)
				p.FreeData(f)
			}
			return err
		}
	}
	return nil
}

// get moves free frames to out and returns how many: at least one unless err is
// not nil. It populates a batch when none is populated.
func (p *Pool) get(out []freeFrame) (int, error) {
	for {
		p.mu.Lock()
		for len(p.free) == 0 && !p.breakBlockLocked() && len(p.runs) == 0 && p.away > 0 {
			p.back.Wait()
		}
		if n := min(len(out), len(p.free)); n > 0 {
			rest := len(p.free) - n
			copy(out, p.free[rest:])
			p.free = p.free[:rest]
			r, ahead := p.takeAheadLocked()
			p.mu.Unlock()
			if ahead {
				go p.growAhead(r)
			}
			return n, nil
		}
		r, ok := p.takeRunLocked()
		p.mu.Unlock()
		if !ok {
			return 0, ErrNoMemory
		}
		if err := p.populate(r); err != nil {
			return 0, err
		}
	}
}

// takeRunLocked takes up to GrowFrames frames that are not populated.
func (p *Pool) takeRunLocked() (run, bool) {
	if len(p.runs) == 0 {
		return run{}, false
	}
	last := &p.runs[len(p.runs)-1]
	r := run{last.first, min(last.n, p.opts.GrowFrames)}
	last.first += addr.PFN(r.n)
	last.n -= r.n
	if last.n == 0 {
		p.runs = p.runs[:len(p.runs)-1]
	}
	p.inRuns -= r.n
	p.away++
	return r, true
}

// returnedLocked ends what began when frames were taken off the lists.
func (p *Pool) returnedLocked() {
	p.away--
	p.back.Broadcast()
}

// populate makes a run usable. Where the host lacks memory for the whole of it,
// one frame is tried, so that the last ones can be had too.
func (p *Pool) populate(r run) error {
	err := p.store.Populate(r.first, r.n)
	usable := r.n
	if err != nil {
		usable = 0
		if r.n > 1 && p.store.Populate(r.first, 1) == nil {
			usable, err = 1, nil
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.returnedLocked()
	// Lowest frame last, so that frames are handed out in ascending order.
	for i := usable; i > 0; i-- {
		p.free = append(p.free, makeFree(r.first+addr.PFN(i-1), true))
	}
	if usable < r.n {
		p.addRunsLocked([]run{{r.first + addr.PFN(usable), r.n - usable}})
	}
	if err != nil {
		return fmt.Errorf("populate %d frames at %v: %w", r.n, r.first, errors.Join(ErrNoMemory, err))
	}
	return nil
}

// poison is what frames under invariants hold while they are free.
const poison = 0xdb

// FreeData takes back a data frame without references.
func (p *Pool) FreeData(f addr.PFN) {
	one := [1]addr.PFN{f}
	p.freeEach(one[:])
}

// DropData takes one reference to each data frame away, and takes back those
// without any. It takes the lock once for each dropBatch frames, which matters
// where gigabytes are dropped.
func (p *Pool) DropData(frames []addr.PFN) {
	var buf [dropBatch]addr.PFN
	for len(frames) > 0 {
		n := min(dropBatch, len(frames))
		if last := p.dropEach(frames[:n], buf[:0]); len(last) > 0 {
			p.freeEach(last)
		}
		frames = frames[n:]
	}
}

const dropBatch = 64

func (p *Pool) freeEach(frames []addr.PFN) {
	for _, f := range frames {
		p.poison(f)
	}
	p.mu.Lock()
	for _, f := range frames {
		p.free = append(p.free, makeFree(f, false))
	}
	p.freedLocked(len(frames))
}

// FreeTable takes back a table frame without references.
func (p *Pool) FreeTable(f addr.PFN) {
	if fn := p.opts.OnFreeTable; fn != nil {
		fn(f)
		return
	}
	p.FreeData(f)
}

func (p *Pool) poison(f addr.PFN) {
	if !invariants.Enabled {
		return
	}
	if n := p.Of(f); n != 0 {
		panic(fmt.Sprintf("cow: frame %v is freed with %d references", f, n))
	}
	p.reclaimed[p.index(f)].Add(1)
	b := p.arena.Bytes(f)
	for i := range b {
		b[i] = poison
	}
}
