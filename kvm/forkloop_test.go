//go:build linux && amd64

package kvm

import (
	"bytes"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// progForkRound leaves what was at RDI in RBX, stores RAX there, reads it back
// into RDX, and exits, for ever.
var progForkRound = program{`
	1: mov (%rdi), %rbx
	mov %rax, (%rdi)
	mov (%rdi), %rdx
	syscall
	jmp 1b
`, "\x48\x8b\x1f\x48\x89\x07\x48\x8b\x17\x0f\x05\xeb\xf3"}

func TestForkRoundBytesMatchTheirSource(t *testing.T) {
	if got := assemble(t, progForkRound.source); !bytes.Equal(got, progForkRound.bytes()) {
		t.Errorf("bytes %x, source %x", progForkRound.code, got)
	}
}

// footprint is what a process and a Memory take.
type footprint struct {
	memory   guestmem.MemoryStats
	heap     uint64 // live bytes
	resident uint64 // pages of the process
	mappings int    // of the process
}

func takeFootprint(t testing.TB, m *guestmem.Memory) (f footprint) {
	t.Helper()
	f.memory = m.Stats()
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	f.heap = s.HeapAlloc
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	f.mappings = bytes.Count(maps, []byte("\n"))
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range bytes.Fields(statm)[1] {
		f.resident = 10*f.resident + uint64(c-'0')
	}
	return f
}

// mustBeFlat compares what there is now with what there was.
func (f footprint) mustBeFlat(t testing.TB, now footprint) {
	t.Helper()
	// The very frames in use depend on where the last round left off, by the
	// tables and pages that one of the sides has of its own.
	if now.memory.FramesInUse > f.memory.FramesInUse+8 {
		t.Errorf("%d frames in use, were %d", now.memory.FramesInUse, f.memory.FramesInUse)
	}
	if now.heap > f.heap+1<<20 {
		t.Errorf("%d bytes of heap, were %d", now.heap, f.heap)
	}
	if now.resident > f.resident+32<<20/addr.PageSize {
		t.Errorf("%d pages resident, were %d", now.resident, f.resident)
	}
	if now.mappings > f.mappings+16 {
		t.Errorf("%d mappings of the host, were %d", now.mappings, f.mappings)
	}
}

// TestR8ForkLoopIsFlat forks again and again within 8 MiB. In each round the
// child's guest reads what its parent has, writes, and reads that; the parent's
// guest then finds its own, and sometimes writes. Neither memory nor heap nor
// mappings grow with the rounds, and retired tables come back in time.
func TestR8ForkLoopIsFlat(t *testing.T) {
	rounds := 2000
	if *soak {
		rounds = 1_000_000
	}
	const size, nPages, quarantine = 8 << 20, 4, 64
	m, p := newGuestMemory(t, size, PlatformOptions{MaxVCPUs: 1, Quarantine: quarantine})
	as := newGuestSpace(t, m, nPages, progForkRound, progRead)
	defer as.Close()
	c := p.NewContext()
	defer c.Close()
	var has [nPages]uint64 // what the parent has in each page
	exchange := func(as *guestmem.AddressSpace, page int, x, want uint64) {
		c.Regs = Regs{RIP: uint64(codeAt(0)), RDI: dataAt(page), RAX: x}
		untilSyscall(t, p, as, c)
		if c.Regs.RBX != want || c.Regs.RDX != x {
			t.Fatalf("page %d: the guest found %d, want %d, and has %d after it wrote %d", page, c.Regs.RBX, want, c.Regs.RDX, x)
		}
	}
	var early footprint
	value, start := uint64(0), time.Now()
	deadline, hasDeadline := t.Deadline()
	done := 0
	for ; done < rounds; done++ {
		if done == rounds/10 {
			early = takeFootprint(t, m)
		}
		if hasDeadline && done > rounds/10 && done%1024 == 0 && time.Until(deadline) < 10*time.Second {
			t.Logf("out of time, with %d rounds to go", rounds-done)
			break
		}
		child, err := as.Fork()
		if err != nil {
			t.Fatalf("round %d: %v", done, err)
		}
		value++
		page := done % nPages
		exchange(child, page, value, has[page])
		if done%8 == 0 {
			value++
			exchange(as, page, value, has[page])
			has[page] = value
		} else {
			c.Regs = Regs{RIP: uint64(codeAt(1)), RDI: dataAt(page)}
			untilSyscall(t, p, as, c)
			if c.Regs.RAX != has[page] {
				t.Fatalf("round %d: the parent reads %d in page %d, want %d", done, c.Regs.RAX, page, has[page])
			}
		}
		if err := child.Close(); err != nil {
			t.Fatal(err)
		}
		if done%512 == 0 {
			if s := m.Stats(); s.FramesInUse > 64 || s.Quarantined > quarantine {
				t.Fatalf("round %d: %+v", done, s)
			}
		}
	}
	took := time.Since(start)
	now := takeFootprint(t, m)
	early.mustBeFlat(t, now)
	t.Logf("%d rounds, %v each; %d frames in use, %d in quarantine; heap %d KiB, was %d; %d pages resident, were %d; %d mappings, were %d",
		done, took/time.Duration(done), now.memory.FramesInUse, now.memory.Quarantined, now.heap>>10, early.heap>>10,
		now.resident, early.resident, now.mappings, early.mappings)
}
