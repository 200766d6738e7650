package pager_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/kvm"
	"github.com/guestmm/guestmm/uffd/pager"
)

// counting is what a vCPU runs here: it goes through n pages (R10) from a base (R9)
// on, again and again, wants each to begin with its address xor a key (RBX), and
// counts up the word behind that. After each pass, of which R8 is the number, it
// says 1, and when it finds something wrong, 0.
var counting = []byte{
	0x4c, 0x89, 0xcf, //                          00 pass: mov %r9, %rdi
	0x4c, 0x89, 0xd6, //                          03       mov %r10, %rsi
	0x48, 0x89, 0xf8, //                          06 next: mov %rdi, %rax
	0x48, 0x31, 0xd8, //                          09       xor %rbx, %rax
	0x48, 0x39, 0x07, //                          0c       cmp %rax, (%rdi)
	0x75, 0x19, //                                0f       jne wrong
	0x48, 0xff, 0x47, 0x08, //                    11       incq 8(%rdi)
	0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, //  15       add $4096, %rdi
	0x48, 0xff, 0xce, //                          1c       dec %rsi
	0x75, 0xe5, //                                1f       jnz next
	0x49, 0xff, 0xc0, //                          21       inc %r8
	0xb0, 0x01, //                                24       mov $1, %al
	0xe6, 0x80, //                                26       out %al, $0x80
	0xeb, 0xd6, //                                28       jmp pass
	0xb0, 0x00, //                                2a wrong: mov $0, %al
	0xe6, 0x80, //                                2c       out %al, $0x80
	0xeb, 0xfa, //                                2e       jmp wrong
}

const (
	atAdd   = codeAt + 0x15 // a page was counted, and RDI is still its
	atIncR8 = codeAt + 0x21 // all were, and R8 does not say so yet
	key     = 0x5bd1e9955bd1e995
	ramAt   = addr.GPA(0x10000000)
)

// counted is how often each of n pages has been counted, by the registers.
func counted(r kvm.GeneralRegs, n uint64) func(page uint64) uint64 {
	at := (r.RDI - uint64(ramAt)) / pageSize
	switch {
	case r.RIP == atAdd:
		at++
	case at == n && r.RIP != atIncR8:
		at = 0
	case r.RIP == codeAt && r.R8 == 0:
		at = 0 // it has not begun
	}
	return func(page uint64) uint64 {
		if page < at {
			return r.R8 + 1
		}
		return r.R8
	}
}

// A program is an image of the counting guest: tables and code in one region, and
// n pages in another, of which all or, if it is sparse, only the first of each 1 024
// are not zero.
type program struct {
	low  *guestmem.Memory
	long *kvm.LongMode
	n    uint64
	step uint64
}

func newProgram(t testing.TB, n, step uint64) *program {
	t.Helper()
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	must(t, err)
	t.Cleanup(func() { m.Close() })
	_, err = m.AddRegion(guestmem.RegionOptions{Name: "low", Size: 4 << 20})
	must(t, err)
	long, err := kvm.SetupLongMode(m, kvm.LongModeOptions{Base: 0x1000})
	must(t, err)
	_, err = m.WriteAt(counting, codeAt)
	must(t, err)
	return &program{m, long, n, step}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (p *program) Regions() []snapfile.Region {
	return []snapfile.Region{
		{Name: "low", Size: 4 << 20, PageSize: pageSize},
		{Name: "ram", Base: ramAt, Size: p.n * pageSize, PageSize: pageSize},
	}
}

func (p *program) Data(base addr.GPA, yield func(addr.GPA, uint64) bool) error {
	if base == 0 {
		yield(0, 4<<20/pageSize)
		return nil
	}
	if p.step == 1 {
		yield(ramAt, p.n)
		return nil
	}
	for i := uint64(0); i < p.n; i += p.step {
		if !yield(ramAt+addr.GPA(i*pageSize), 1) {
			break
		}
	}
	return nil
}

func (p *program) ReadAt(b []byte, gpa addr.GPA) (int, error) {
	if gpa < ramAt {
		return p.low.ReadAt(b, gpa)
	}
	clear(b)
	for i := uint64(0); i < uint64(len(b)); i += pageSize {
		binary.LittleEndian.PutUint64(b[i:], (uint64(gpa)+i)^key)
		binary.LittleEndian.PutUint64(b[i+16:], uint64(gpa)+i) // which nobody changes
	}
	return len(b), nil
}

func (p *program) save(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "guest.snap")
	_, err := snapfile.Write(context.Background(), path, p, snapfile.Options{Sync: snapfile.SyncNone})
	must(t, err)
	return path
}

// A counter is a VM that counts, in memory that is being restored.
type counter struct {
	t       testing.TB
	p       *program
	m       *guestmem.Memory
	restore *pager.Restore
	vm      *kvm.VM
	vcpu    *kvm.VCPU
	stop    context.CancelCauseFunc
	passes  atomic.Int64
	ended   chan error
}

// startCounter restores a file and has its vCPU count.
func startCounter(t testing.TB, p *program, path string, o pager.RestoreOptions) *counter {
	t.Helper()
	testutil.RequireKVM(t)
	testutil.RequireUFFD(t, testutil.UFFDMissingShmem)
	c := &counter{t: t, p: p, ended: make(chan error, 1)}
	ctx, stop := context.WithCancelCause(context.Background())
	c.stop = stop
	sys, err := kvm.Open()
	must(t, err)
	t.Cleanup(func() { sys.Close() })
	f, err := snapfile.Open(path, snapfile.OpenOptions{})
	must(t, err)
	t.Cleanup(func() { f.Close() })
	c.m, err = guestmem.NewMemory(guestmem.MemoryOptions{})
	must(t, err)
	t.Cleanup(func() { must(t, c.m.Close()) })
	if o.Fail == nil {
		o.Fail = func(err error) { stop(err) }
	}
	c.restore, err = pager.StartRestore(context.Background(), c.m, f, o)
	must(t, err)
	t.Cleanup(func() { c.restore.Close() })
	c.vm, err = sys.NewVM(c.m, kvm.VMOptions{})
	must(t, err)
	t.Cleanup(func() { c.vm.Close() })
	c.vcpu, err = c.vm.NewVCPU(0)
	must(t, err)
	must(t, p.long.Enter(c.vcpu, kvm.Ring3, kvm.GeneralRegs{RIP: codeAt, RSP: 0x180000, RBX: key, RDI: uint64(ramAt), R9: uint64(ramAt), R10: p.n}))
	go func() { c.ended <- c.run(ctx) }()
	t.Cleanup(c.halt)
	return c
}

func (c *counter) run(ctx context.Context) error {
	for {
		exit, err := c.vcpu.Run(ctx)
		switch {
		case err != nil:
			return err
		case exit.Kind != kvm.VMExitIO || len(exit.Data) != 1:
			return fmt.Errorf("exit %v", exit)
		case exit.Data[0] != 1:
			return errWrong
		}
		c.passes.Add(1)
	}
}

var (
	errWrong = errors.New("the guest found a page that is not what it should be")
	errStop  = errors.New("stopped")
)

// halt stops the vCPU, which must have found nothing wrong.
func (c *counter) halt() {
	c.stop(errStop)
	select {
	case err := <-c.ended:
		if errors.Is(err, errWrong) {
			c.t.Error(err)
		}
		c.ended <- err
	case <-time.After(patience):
		c.t.Error("the vCPU does not stop")
	}
}

// until waits for a number of passes.
func (c *counter) until(passes int64) {
	c.t.Helper()
	for end := time.Now().Add(patience); c.passes.Load() < passes; time.Sleep(time.Millisecond) {
		select {
		case err := <-c.ended:
			c.ended <- err
			c.t.Fatalf("the vCPU has ended: %v", err)
		default:
		}
		if time.Now().After(end) {
			c.t.Fatalf("%d passes of %d", c.passes.Load(), passes)
		}
	}
}

// wantMemory holds memory of the guest, read by read, against its registers.
func (p *program) wantMemory(t testing.TB, what string, regs kvm.GeneralRegs, read func([]byte, addr.GPA) (int, error)) {
	t.Helper()
	want := counted(regs, p.n)
	b := make([]byte, pageSize)
	wrong := 0
	for i := range p.n {
		at := ramAt + addr.GPA(i*pageSize)
		if _, err := read(b, at); err != nil {
			t.Fatalf("%s: page %d: %v", what, i, err)
		}
		id, n, same := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
		if id != uint64(at)^key || n != want(i) || same != uint64(at) {
			if wrong++; wrong < 5 {
				t.Errorf("%s: page %d of %d holds %#x, %d, %#x, want %#x, %d, %#x (RIP %#x, RDI %#x, R8 %d)",
					what, i, p.n, id, n, same, uint64(at)^key, want(i), uint64(at), regs.RIP, regs.RDI, regs.R8)
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%s: %d pages are wrong", what, wrong)
	}
}

// TestRestoredGuestChecksItself: a vCPU runs at once, and finds every page of its
// memory as it was, while it comes and afterwards.
func TestRestoredGuestChecksItself(t *testing.T) {
	p := newProgram(t, 4096, 1)
	path := p.save(t)
	for _, run := range []string{"first", "with its working set"} {
		t.Run(run, func(t *testing.T) {
			o := pager.RestoreOptions{RecordFor: -1}
			if run == "first" {
				o.Rest = pager.LeaveRest // so that all that it needs is recorded
			}
			c := startCounter(t, p, path, o)
			c.until(3)
			if o.Rest == pager.FillRest {
				testutil.Proceeds(t, c.restore.Done(), "end of the restore")
				must(t, c.restore.Err())
			}
			c.until(c.passes.Load() + 2)
			c.halt()
			regs, err := c.vcpu.Regs()
			must(t, err)
			p.wantMemory(t, "in the end", regs, c.m.ReadAt)
			must(t, c.restore.Close())
			must(t, c.restore.WorkingSetErr())
			if n := c.restore.Replayed(); run == "first" && n != 0 || run != "first" && n < p.n {
				t.Errorf("%d pages were replayed", n)
			}
		})
	}
}

// TestR12FlippedBitsAndVCPU: a vCPU never sees a byte that the file did not hold when it
// was written; its owner is told which error it was, and Run ends with that.
func TestR12FlippedBitsAndVCPU(t *testing.T) {
	testutil.RequireKVM(t)
	p := newProgram(t, 1024, 1)
	path := p.save(t)
	good, err := os.ReadFile(path)
	must(t, err)
	rnd := rand.New(rand.NewPCG(4, 4))
	damaged := 0
	for i := range 12 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			bad := bytes.Clone(good)
			bad[rnd.IntN(len(bad))] ^= 1 << rnd.IntN(8)
			path := filepath.Join(t.TempDir(), "bad.snap")
			must(t, os.WriteFile(path, bad, 0o600))
			if f, err := snapfile.Open(path, snapfile.OpenOptions{}); err != nil {
				return // nobody runs
			} else {
				f.Close()
			}
			told := make(chan error, 1)
			c := startCounter(t, p, path, pager.RestoreOptions{
				WorkingSets: pager.NoWorkingSet, RecordFor: -1, Retry: pager.Retry{Attempts: 1}, Fail: func(err error) { told <- err },
			})
			// In its first pass it wants all of the pages that it ever will.
			var err error
			for end := time.Now().Add(patience); err == nil && c.passes.Load() < 2; {
				select {
				case err = <-told:
				case <-time.After(time.Millisecond):
				}
				if time.Now().After(end) {
					t.Fatal("the guest neither goes on nor fails")
				}
			}
			if err == nil {
				return // the wrong bit is in nothing that it wants
			}
			if !errors.Is(err, snapfile.ErrDamaged) || !errors.Is(err, pager.ErrSource) {
				t.Errorf("the owner is told %v", err)
			}
			damaged++
			c.stop(err)
			got := testutil.Proceeds(t, c.ended, "vCPU")
			// Why it was stopped, or that its memory has gone, whichever it met first.
			if !errors.Is(got, snapfile.ErrDamaged) && (got == nil || !strings.Contains(got.Error(), syscall.EFAULT.Error())) {
				t.Errorf("Run: %v", got)
			}
			c.ended <- got
		})
	}
	if damaged == 0 {
		t.Error("no damaged page was met")
	}
}
