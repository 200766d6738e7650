//go:build linux && amd64

package kernel

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem"
)

// resident is how many bytes of an address space have a frame. It walks the tables, so
// that it is asked for where somebody wants to know alone.
func (m *mm) resident() uint64 {
	l, err := m.as.Layout()
	if err != nil {
		return 0
	}
	return l.Bytes(guestmem.LaidPresent, 0)
}

// usage is what getrusage tells of memory.
type usage struct {
	faults  atomic.Uint64 // that were answered
	most    atomic.Uint64 // bytes resident whenever somebody looked
	waited  atomic.Uint64 // faults of the children that were waited for
	largest atomic.Uint64 // most of the largest of those
}

// look notes how large the process is now.
func (p *Process) look() {
	m := p.memory()
	if m == nil {
		return
	}
	raise(&p.usage.most, m.resident())
	m.release()
}

func raise(v *atomic.Uint64, to uint64) {
	for was := v.Load(); to > was && !v.CompareAndSwap(was, to); was = v.Load() {
	}
}

// waitFor adds what a child has used.
func (u *usage) waitFor(child *usage) {
	u.waited.Add(child.faults.Load() + child.waited.Load())
	raise(&u.largest, max(child.most.Load(), child.largest.Load()))
}

// rusage is struct rusage.
type rusage struct {
	Utime, Stime unix.Timeval
	MaxRSS       int64 // KiB
	_            [3]int64
	MinFaults    int64
	_            [9]int64
}

func rusageOf(c cpuTime, most, faults uint64) rusage {
	return rusage{
		Utime: unix.NsecToTimeval(int64(c.user)), Stime: unix.NsecToTimeval(int64(c.system)),
		MaxRSS: int64(most >> 10), MinFaults: int64(faults),
	}
}

func sysGetrusage(t *Task, a args) (uint64, error) {
	u := &t.proc.usage
	switch who := int32(a[0]); who {
	case unix.RUSAGE_SELF, unix.RUSAGE_THREAD:
		t.proc.look()
		spent := t.proc.clock.now()
		if who == unix.RUSAGE_THREAD {
			spent = t.clock.now()
		}
		return 0, put(t, a[1], rusageOf(spent, u.most.Load(), u.faults.Load()))
	case unix.RUSAGE_CHILDREN:
		return 0, put(t, a[1], rusageOf(t.childrenTime(), u.largest.Load(), u.waited.Load()))
	}
	return 0, unix.EINVAL
}
