package guestmem

import (
	"fmt"
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// armPlan is what a window arms of a region: what is neither armed nor pinned.
//
// It is made twice. The first time is a rehearsal, before vCPUs are stopped: it says
// how much room the plan takes, and the window then allocates nothing but what was
// written in between. (Arming what the rehearsal finds would shorten the pause
// further, and is not done: what is written after that would fault for nothing, and
// would have to be known as written.)
type armPlan struct {
	r       *Region
	a       *armMap
	pinned  []uint32 // by word; nil: none
	written []uint32 // by word: what was not armed; becomes the interval's
	runs    []armRun
	armed   uint64 // units that the window arms
	wrote   uint64 // units in written
}

type armRun struct{ first, n uint64 } // pages

// An ioctl costs 0.75 µs and then 0.027 µs for each page, so that going over this
// many pages that are armed already costs what another call would. Where a region
// was written all over, the runs become one.
const maxArmedGap = 24

// rehearse makes the plans of a snapshot, of what is not armed at the moment.
func (s *Snapshot) rehearse() {
	s.age = &interval{written: make(map[*Region]writtenUnits)}
	for _, l := range s.layers {
		if l.arms == nil {
			continue
		}
		p := &armPlan{r: l.region, a: l.arms, written: make([]uint32, len(l.arms.words))}
		p.make()
		s.plans = append(s.plans, p)
		s.age.written[l.region] = writtenUnits{l.arms.unit, p.written}
	}
}

// make makes the plan anew. It counts in the window alone, where the gate is held
// exclusively and nothing is armed or disarmed meanwhile.
func (p *armPlan) make() {
	a := p.a
	p.runs, p.armed, p.wrote = p.runs[:0], 0, 0
	clear(p.pinned)
	p.r.HeldForWriting(func(first, n uint64) {
		if p.pinned == nil {
			p.pinned = make([]uint32, len(a.words))
		}
		for word, mask := range a.within(first, n) {
			// What is armed still is of a slice that is about to be given out:
			// it disarms the page before, and that copies it for all.
			p.pinned[word] |= mask &^ a.armed(word)
		}
	})
	for i := range a.words {
		word := uint64(i)
		armed := a.armed(word)
		if armed == ^uint32(0) {
			p.written[i] = 0
			continue
		}
		written := a.all(word) &^ armed
		p.written[i] = written
		todo := written
		if p.pinned != nil {
			todo &^= p.pinned[i]
		}
		p.wrote += uint64(bits.OnesCount32(written))
		p.armed += uint64(bits.OnesCount32(todo))
		a.eachUnitRun(word, todo, p.add)
	}
}

// add appends a run, or lengthens the last one where that is cheaper.
func (p *armPlan) add(first, n uint64) {
	if k := len(p.runs) - 1; k >= 0 {
		last := &p.runs[k]
		if end := last.first + last.n; first-end <= maxArmedGap*p.a.unit && !p.anyPinned(end, first-end) {
			last.n = first + n - last.first
			return
		}
	}
	p.runs = append(p.runs, armRun{first, n})
}

func (p *armPlan) anyPinned(first, n uint64) bool {
	if p.pinned == nil {
		return false
	}
	for word, mask := range p.a.within(first, n) {
		if p.pinned[word]&mask != 0 {
			return true
		}
	}
	return false
}

// commit says that the runs are armed. Words of which nothing was written stay as they
// are: a store that others see at once costs more than all the rest of a plan.
func (p *armPlan) commit() {
	for i, written := range p.written {
		if written == 0 {
			continue
		}
		v := p.a.all(uint64(i))
		if p.pinned != nil {
			v &^= p.pinned[i]
		}
		p.a.words[i].Store(uint64(v))
	}
}

// armShare is how much one goroutine arms at a time, where there are several.
//
// Many short runs are one goroutine's, however long they take: each call has the other
// cores of the process drop their translations, and two goroutines do so to each other
// all the time. Two on two cores were slower than one.
const armShare = 32 << 20 / addr.PageSize

// armJob is some of a plan's runs.
type armJob struct {
	p    *armPlan
	runs []armRun
}

// armJobs shares out the plans' runs.
func armJobs(plans []*armPlan, workers int) (jobs []armJob, pages uint64) {
	for _, p := range plans {
		from := 0 // runs before it are in jobs
		for i, run := range p.runs {
			pages += run.n
			if workers == 1 || run.n <= armShare {
				continue
			}
			jobs = append(jobs, armJob{p, p.runs[from:i]})
			from = i + 1
			for ; run.n > 0; run.first, run.n = run.first+min(run.n, armShare), run.n-min(run.n, armShare) {
				jobs = append(jobs, armJob{p, []armRun{{run.first, min(run.n, armShare)}}})
			}
		}
		jobs = append(jobs, armJob{p, p.runs[from:]})
	}
	return jobs, pages
}

// armAll has the kernel arm the runs of all plans.
func armAll(m *Memory, plans []*armPlan, workers int) error {
	if workers == 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	jobs, pages := armJobs(plans, workers)
	if uint64(workers) > pages/armShare+1 {
		workers = int(pages/armShare) + 1 // a goroutine is not worth less
	}
	var next atomic.Int64
	var failed atomic.Pointer[error]
	work := func() {
		for failed.Load() == nil {
			i := next.Add(1) - 1
			if i >= int64(len(jobs)) {
				return
			}
			j := jobs[i]
			if err := m.armRuns(j.p.r, j.runs); err != nil {
				err = fmt.Errorf("region %v: %w", j.p.r, hostShort(err))
				failed.CompareAndSwap(nil, &err)
			}
		}
	}
	var wg sync.WaitGroup
	for range workers - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// armRuns has runs of a region armed by whoever does that.
func (m *Memory) armRuns(r *Region, runs []armRun) error {
	switch by := m.armerOf(r).(type) {
	case nil:
		return ErrClosed
	case *watcher:
		return by.armRuns(r, runs)
	default:
		for _, run := range runs {
			if err := by.Arm(r, run.first, run.n); err != nil {
				return err
			}
		}
		return nil
	}
}
