package pager_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/kvm"
	"github.com/guestmm/guestmm/uffd"
	"github.com/guestmm/guestmm/uffd/pager"
)

// What a vCPU does here: it loads the first byte of a page, says it by a port,
// and goes on to the next page.
var walk = []byte{
	0x8a, 0x07, //                              1: mov (%rdi), %al
	0xe6, 0x80, //                                 out %al, $0x80
	0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, //   add $4096, %rdi
	0xeb, 0xf3, //                                 jmp 1b
}

const (
	pageSize = uint64(addr.PageSize)
	codeAt   = 0x100000
	served   = addr.GPA(0x10000000)
	patience = 60 * time.Second
)

// image is a Source whose pages begin with what firstByte says; one may be
// broken.
type image struct {
	pages  uint64
	broken uint64 // page that cannot be read; 0: none
}

func firstByte(page uint64) byte { return byte(page*7 | 1) }

func (s image) Size() uint64 { return s.pages * pageSize }

func (s image) ReadPages(_ context.Context, p []byte, off uint64) error {
	for i := uint64(0); i < uint64(len(p)); i += pageSize {
		page := (off + i) / pageSize
		if page == s.broken && page != 0 {
			return syscall.EIO
		}
		binary.LittleEndian.PutUint64(p[i:], uint64(firstByte(page)))
	}
	return nil
}

// A virtual is a VM with one vCPU whose second region is served by a pager.
type virtual struct {
	t      *testing.T
	vm     *kvm.VM
	vcpu   *kvm.VCPU
	long   *kvm.LongMode
	region *guestmem.Region
	guest  *pager.Guest
	fd     *uffd.FD
}

// newVirtual backs the region by a shared memfd, or by private memory at
// mapping.
func newVirtual(t *testing.T, src image, mapping addr.HVA, o pager.GuestOptions) *virtual {
	t.Helper()
	testutil.RequireKVM(t)
	testutil.RequireUFFD(t, testutil.UFFDEvents)
	testutil.RequireUFFD(t, testutil.UFFDMissingShmem)
	v := &virtual{t: t}
	sys, err := kvm.Open()
	v.must(err)
	t.Cleanup(func() { sys.Close() })
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	v.must(err)
	t.Cleanup(func() { m.Close() })
	_, err = m.AddRegion(guestmem.RegionOptions{Size: 4 << 20})
	v.must(err)
	ro := guestmem.RegionOptions{Base: served, Size: src.Size()}
	if mapping != 0 {
		ro.Backing, ro.Mapping = guestmem.BackingForeign, mapping
	}
	v.region, err = m.AddRegion(ro)
	v.must(err)
	v.long, err = kvm.SetupLongMode(m, kvm.LongModeOptions{Base: 0x1000})
	v.must(err)
	_, err = m.WriteAt(walk, codeAt)
	v.must(err)
	v.fd, err = uffd.Open(uffd.Options{Required: uffd.FeatureEventRemove | uffd.FeatureEventUnmap | uffd.FeatureMissingShmem})
	v.must(err)
	t.Cleanup(func() { v.fd.Close() })
	_, err = v.fd.Register(v.region.Slot(), v.region.Size(), uffd.Missing)
	v.must(err)
	s := pager.NewServer(pager.Options{})
	t.Cleanup(func() { s.Close() })
	o.FD, o.Source = v.fd, src
	o.Regions = []pager.Region{{Start: v.region.Slot(), Size: v.region.Size()}}
	if o.Fail == nil {
		o.Fail = func(error) {}
	}
	v.guest, err = s.Add(o)
	v.must(err)
	t.Cleanup(func() { v.guest.Close() })
	v.vm, err = sys.NewVM(m, kvm.VMOptions{})
	v.must(err)
	t.Cleanup(func() { v.vm.Close() })
	v.vcpu, err = v.vm.NewVCPU(0)
	v.must(err)
	return v
}

func (v *virtual) must(err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatal(err)
	}
}

// begin has the vCPU walk from a page on.
func (v *virtual) begin(page uint64) {
	v.t.Helper()
	v.must(v.long.Enter(v.vcpu, kvm.Ring3, kvm.GeneralRegs{RIP: codeAt, RSP: 0x180000, RDI: uint64(served) + page*pageSize}))
}

// next runs the vCPU to what it says next.
func (v *virtual) next(ctx context.Context) (byte, error) {
	type said struct {
		b   byte
		err error
	}
	ch := make(chan said, 1)
	go func() {
		exit, err := v.vcpu.Run(ctx)
		switch {
		case err != nil:
			ch <- said{0, err}
		case exit.Kind != kvm.VMExitIO || len(exit.Data) != 1:
			ch <- said{0, fmt.Errorf("exit %v", exit)}
		default:
			ch <- said{exit.Data[0], nil}
		}
	}()
	got := testutil.Proceeds(v.t, ch, "vCPU")
	return got.b, got.err
}

// walk wants the vCPU to find each of the pages from first on.
func (v *virtual) walk(first uint64, want ...byte) {
	v.t.Helper()
	v.begin(first)
	for i, w := range want {
		if got, err := v.next(context.Background()); err != nil || got != w {
			v.t.Fatalf("page %d: %#x, %v; want %#x", first+uint64(i), got, err, w)
		}
	}
}

func wanted(first, n uint64) (out []byte) {
	for i := range n {
		out = append(out, firstByte(first+i))
	}
	return out
}

// TestTrap06VCPUReads: a vCPU reads pages of a shared memfd that are not there.
// On hosts where that faults as a write it is served like any other fault.
func TestTrap06VCPUReads(t *testing.T) {
	const n = 64
	v := newVirtual(t, image{pages: n}, 0, pager.GuestOptions{})
	v.walk(0, wanted(0, n)...)
	if got := v.guest.Stats().Missing.Load(); got < n {
		t.Errorf("%d missing faults for %d pages", got, n)
	}
	// Holes punched under the vCPU read as zero.
	v.must(testAdvise(v.region.Slot()+addr.HVA(8*pageSize), 4*pageSize, unix.MADV_REMOVE))
	v.walk(7, firstByte(7), 0, 0, 0, 0, firstByte(12))
}

// TestVCPUAndBalloon: private memory that is given back reads as zero to a
// vCPU, whether it had touched it before or not.
func TestVCPUAndBalloon(t *testing.T) {
	const n = 64
	at := addr.HVA(testutil.MapAnonymous(t, n*pageSize))
	v := newVirtual(t, image{pages: n}, at, pager.GuestOptions{})
	v.walk(0, wanted(0, 16)...)
	v.must(testAdvise(at+addr.HVA(10*pageSize), 10*pageSize, unix.MADV_DONTNEED))
	v.walk(9, append(append([]byte{firstByte(9)}, make([]byte, 10)...), wanted(20, n-20)...)...)
	// The vCPU goes on once a page is there, the server's books a moment later.
	testutil.Within(t, patience, func() {
		for v.guest.Stats().Zeroed.Load() < 10 {
			time.Sleep(time.Millisecond)
		}
	})
	if got := v.guest.Stats().Zeroed.Load(); got != 10 {
		t.Errorf("%d pages of zeroes, want 10", got)
	}
}

// TestR12VCPUOfAFailedGuest: a page that cannot be read ends the vCPU's Run with
// an error that its owner chose. It never sees the page.
func TestR12VCPUOfAFailedGuest(t *testing.T) {
	const n = 32
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared=%v", shared), func(t *testing.T) {
			var at addr.HVA
			if !shared {
				at = addr.HVA(testutil.MapAnonymous(t, n*pageSize))
			}
			ctx, stop := context.WithCancelCause(context.Background())
			defer stop(nil)
			v := newVirtual(t, image{pages: n, broken: 5}, at, pager.GuestOptions{Fail: func(err error) { stop(err) }})
			v.begin(3)
			for page := uint64(3); page < 5; page++ {
				if got, err := v.next(ctx); err != nil || got != firstByte(page) {
					t.Fatalf("page %d: %#x, %v", page, got, err)
				}
			}
			got, err := v.next(ctx)
			if err == nil {
				t.Fatalf("the vCPU read %#x where nothing can be read", got)
			}
			if cause := context.Cause(ctx); !errors.Is(cause, pager.ErrSource) || !errors.Is(cause, syscall.EIO) {
				t.Errorf("Run: %v; cause %v", err, cause)
			}
			if strings.Contains(v.guest.Err().Error(), "zero") || v.guest.Stats().Zeroed.Load() != 0 {
				t.Errorf("guest ended by %v, %d zeroes", v.guest.Err(), v.guest.Stats().Zeroed.Load())
			}
		})
	}
}

func testAdvise(a addr.HVA, size uint64, advice int) error {
	_, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(a), uintptr(size), uintptr(advice))
	if errno != 0 {
		return errno
	}
	return nil
}
