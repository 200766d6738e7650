//go:build linux && amd64

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/kvm"
	"github.com/guestmm/guestmm/uffd"
)

// A VMM of its own process, which does at restore what Firecracker does, and
// then runs a guest that reads and writes all of its memory. It is told what to
// do by lines on its stdin, and answers each with a line on stdout.
//
// Nothing here loads from or stores to the guest's memory: the guest does.

const (
	page = 4096
	// wordFactor makes the words of an image; 0 in its place makes zeroes.
	wordFactor = 0x9e3779b97f4a7c15
	// Of every holeEvery pages of an image the last holeRun are a hole.
	holeEvery, holeRun = 64, 8
)

// word is the i-th word of an image.
func word(i, seed uint64) uint64 { return (i ^ seed) * wordFactor }

func isHole(p uint64) bool { return p%holeEvery >= holeEvery-holeRun }

// vmmRegion is a range of the image, in pages.
type vmmRegion struct{ First, N uint64 }

// vmmConfig is what a VMM starts with.
type vmmConfig struct {
	Socket  string
	Seed    uint64
	Regions []vmmRegion
	Evil    []string // what it does wrong, one after the other, if it does

	LateFD   bool // the descriptor comes in a message of its own
	Split    bool // the message comes in pieces
	Extra    bool // a memfd comes too
	Claim    bool // PID FD BYTES, and no descriptor
	Unknown  bool // members that nobody knows
	OldName  bool // page_size_kib alone
	HugePage bool
	Hidden   bool // registers a page that the message does not tell of
}

// region is a mapped one.
type region struct {
	vmmRegion
	at uint64
}

// pageState is what a page must hold: words by seed, or zeroes.
type pageState struct {
	seed uint64
	zero bool
}

type vmm struct {
	c       vmmConfig
	fd      *uffd.FD
	conn    *net.UnixConn
	regions []region
	hidden  uint64               // the address of a page that the server does not know
	model   map[uint64]pageState // by page of the image
	pages   []uint64             // those that there are, in order

	memory *guestmem.Memory
	vcpu   *kvm.VCPU
}

// runVMM is the program. It never returns.
func runVMM(config string) {
	var c vmmConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		panic(err)
	}
	v := &vmm{c: c, model: make(map[uint64]pageState)}
	steps := []func() error{v.restore, v.handshake, v.boot}
	if len(c.Evil) > 0 {
		steps = nil
		for _, e := range c.Evil {
			answer((&vmm{c: c, model: make(map[uint64]pageState)}).evil(e))
		}
		os.Exit(0)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			answer(err)
			os.Exit(1)
		}
	}
	answer(nil)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		answer(v.do(lines.Text()))
	}
	os.Exit(0)
}

func answer(err error) {
	if err != nil {
		fmt.Printf("bad: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
		return
	}
	fmt.Println("ok")
}

func (v *vmm) do(command string) error {
	var what string
	var a, b, c uint64
	fmt.Sscan(command, &what, &a, &b, &c)
	switch what {
	case "verify":
		return v.check(v.pages)
	case "check":
		return v.check(v.from(a, b))
	case "write":
		return v.write(v.from(a, b), c)
	case "balloon":
		return v.balloon(v.from(a, b))
	case "random":
		return v.random(a, b)
	case "hungup": // waits until the server has closed its end
		return hungUp(v.conn)
	case "again": // a second connection, until the server hangs it up
		first := v.conn
		err := v.handshake()
		second := v.conn
		v.conn = first
		if err != nil {
			return err
		}
		defer second.Close()
		return hungUp(second)
	case "touch-hidden":
		return testutil.Load(v.hidden, make([]byte, 1))
	case "drop-hidden":
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(v.hidden), page, unix.MADV_DONTNEED); errno != 0 {
			return errno
		}
		return nil
	case "crash":
		return unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	return fmt.Errorf("command %q", command)
}

// hungUp waits until the server has closed its end. What it has not read by then
// makes that a reset.
func hungUp(conn *net.UnixConn) error {
	_, err := conn.Read(make([]byte, 1))
	if err != io.EOF && !errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("read %v, want EOF", err)
	}
	return nil
}

// from returns n pages from the a-th page that there is.
func (v *vmm) from(a, n uint64) []uint64 {
	a = min(a, uint64(len(v.pages)))
	return v.pages[a:min(a+n, uint64(len(v.pages)))]
}

// random does n things at random places.
func (v *vmm) random(n, seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 1))
	for range n {
		pages := v.from(r.Uint64N(uint64(len(v.pages))), 1+r.Uint64N(8))
		var err error
		switch r.IntN(4) {
		case 0:
			err = v.write(pages, r.Uint64())
		case 1:
			err = v.balloon(pages)
		default:
			err = v.check(pages)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// restore maps the memory and registers it.
func (v *vmm) restore() error {
	flags := unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE
	if v.c.HugePage {
		flags |= unix.MAP_HUGETLB | unix.MAP_HUGE_2MB
	}
	var err error
	v.fd, err = uffd.Open(uffd.Options{Required: uffd.FeatureEventRemove})
	if err != nil {
		return err
	}
	mapped := func(n uint64) (uint64, error) {
		at, _, errno := unix.Syscall6(unix.SYS_MMAP, 0, uintptr(n*page), unix.PROT_READ|unix.PROT_WRITE, uintptr(flags), ^uintptr(0), 0)
		if errno != 0 {
			return 0, fmt.Errorf("mmap: %w", errno)
		}
		_, err := v.fd.Register(addr.HVA(at), n*page, uffd.Missing)
		return uint64(at), err
	}
	if v.c.Hidden {
		if v.hidden, err = mapped(1); err != nil {
			return err
		}
	}
	for _, r := range v.c.Regions {
		at, err := mapped(r.N)
		if err != nil {
			return err
		}
		v.regions = append(v.regions, region{r, at})
		for p := r.First; p < r.First+r.N; p++ {
			v.pages = append(v.pages, p)
			v.model[p] = pageState{seed: v.c.Seed, zero: isHole(p)}
		}
	}
	return nil
}

// message is what Firecracker sends.
func (v *vmm) message() []byte {
	type mapping struct {
		Base     uint64 `json:"base_host_virt_addr"`
		Size     uint64 `json:"size"`
		Offset   uint64 `json:"offset"`
		PageSize uint64 `json:"page_size,omitempty"`
		KiB      uint64 `json:"page_size_kib"`
		Other    any    `json:"use_sync_wp,omitempty"`
	}
	var out []mapping
	for _, r := range v.regions {
		m := mapping{Base: r.at, Size: r.N * page, Offset: r.First * page, PageSize: v.pageSize(), KiB: v.pageSize()}
		if v.c.OldName {
			m.PageSize = 0
		}
		if v.c.Unknown {
			m.Other = map[string]any{"a": []int{1, 2}, "b]\"": "\\\"]}"}
		}
		out = append(out, m)
	}
	b, err := json.Marshal(out)
	if err != nil {
		panic(err)
	}
	return b
}

func (v *vmm) pageSize() uint64 {
	if v.c.HugePage {
		return 2 << 20
	}
	return page
}

func (v *vmm) dial() (err error) {
	v.conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: v.c.Socket, Net: "unix"})
	return err
}

func (v *vmm) handshake() error {
	if err := v.dial(); err != nil {
		return err
	}
	b := v.message()
	fds := []int{v.fd.Fd()}
	if v.c.Extra {
		memfd, err := unix.MemfdCreate("extra", unix.MFD_CLOEXEC)
		if err != nil {
			return err
		}
		fds = []int{memfd, v.fd.Fd()}
	}
	if v.c.Claim {
		b = append(fmt.Appendf(nil, "%d %d %d\n", os.Getpid(), v.fd.Fd(), len(b)), b...)
		fds = nil
	}
	if v.c.Split || v.c.LateFD {
		cut := len(b)
		if v.c.Split {
			cut = len(b) / 3
		}
		if _, err := v.conn.Write(b[:cut]); err != nil {
			return err
		}
		if b = b[cut:]; len(b) == 0 {
			b = []byte{0} // a descriptor needs a byte to come with
		}
	}
	_, _, err := v.conn.WriteMsgUnix(b, unix.UnixRights(fds...), nil)
	return err
}

// The guest's own memory, beside what is restored.
const (
	ownBytes = 4 << 20
	longMode = 0x1000
	codeAt   = 0x100000
	fillAt   = codeAt + 0x100
	stackTop = 0x180000
	imageAt  = 1 << 30 // where offset 0 of the image is

	portOf  = 0x80
	saysOK  = 1
	saysBad = 2
)

// checkCode compares RCX words at RDI with those of seed R8 from number RSI on,
// times RDX; fillCode stores them.
var (
	checkCode = []byte{
		0x48, 0x89, 0xf0, //       1: mov %rsi, %rax
		0x4c, 0x31, 0xc0, //          xor %r8, %rax
		0x48, 0x0f, 0xaf, 0xc2, //    imul %rdx, %rax
		0x48, 0x39, 0x07, //          cmp %rax, (%rdi)
		0x75, 0x12, //                jne 2f
		0x48, 0x83, 0xc7, 0x08, //    add $8, %rdi
		0x48, 0xff, 0xc6, //          inc %rsi
		0x48, 0xff, 0xc9, //          dec %rcx
		0x75, 0xe5, //                jnz 1b
		0xb0, saysOK, //              mov $1, %al
		0xe6, portOf, //              out %al, $0x80
		0xeb, 0xfe, //                jmp .
		0xb0, saysBad, //          2: mov $2, %al
		0xe6, portOf, //              out %al, $0x80
		0xeb, 0xfe, //                jmp .
	}
	fillCode = []byte{
		0x48, 0x89, 0xf0, //       1: mov %rsi, %rax
		0x4c, 0x31, 0xc0, //          xor %r8, %rax
		0x48, 0x0f, 0xaf, 0xc2, //    imul %rdx, %rax
		0x48, 0x89, 0x07, //          mov %rax, (%rdi)
		0x48, 0x83, 0xc7, 0x08, //    add $8, %rdi
		0x48, 0xff, 0xc6, //          inc %rsi
		0x48, 0xff, 0xc9, //          dec %rcx
		0x75, 0xe7, //                jnz 1b
		0xb0, saysOK, //              mov $1, %al
		0xe6, portOf, //              out %al, $0x80
		0xeb, 0xfe, //                jmp .
	}
)

// boot makes the VM.
func (v *vmm) boot() error {
	system, err := kvm.Open()
	if err != nil {
		return err
	}
	defer system.Close()
	if v.memory, err = guestmem.NewMemory(guestmem.MemoryOptions{}); err != nil {
		return err
	}
	if _, err := v.memory.AddRegion(guestmem.RegionOptions{Size: ownBytes}); err != nil {
		return err
	}
	for _, r := range v.regions {
		_, err := v.memory.AddRegion(guestmem.RegionOptions{
			Base: addr.GPA(imageAt + r.First*page), Size: r.N * page,
			Backing: guestmem.BackingForeign, Mapping: addr.HVA(r.at),
		})
		if err != nil {
			return err
		}
	}
	long, err := kvm.SetupLongMode(v.memory, kvm.LongModeOptions{Base: longMode})
	if err != nil {
		return err
	}
	for at, code := range map[addr.GPA][]byte{codeAt: checkCode, fillAt: fillCode} {
		if _, err := v.memory.WriteAt(code, at); err != nil {
			return err
		}
	}
	vm, err := system.NewVM(v.memory, kvm.VMOptions{})
	if err != nil {
		return err
	}
	if v.vcpu, err = vm.NewVCPU(0); err != nil {
		return err
	}
	return long.Enter(v.vcpu, kvm.Ring3, kvm.GeneralRegs{RIP: codeAt, RSP: stackTop})
}

// call runs one of the guest's two routines over n pages from p on, which are
// neighbours and in one state.
func (v *vmm) call(rip uint64, p, n uint64, s pageState) error {
	regs := kvm.GeneralRegs{
		RIP: rip, RSP: stackTop, RFLAGS: 1 << 1,
		RDI: imageAt + p*page, RSI: p * page / 8, RCX: n * page / 8, RDX: wordFactor, R8: s.seed,
	}
	if s.zero {
		regs.RDX = 0
	}
	if err := v.vcpu.SetRegs(regs); err != nil {
		return err
	}
	exit, err := v.vcpu.Run(context.Background())
	if err != nil {
		return err
	}
	if exit.Kind != kvm.VMExitIO || exit.Port != portOf || len(exit.Data) != 1 {
		return fmt.Errorf("the guest left by %v", exit)
	}
	if exit.Data[0] == saysOK {
		return nil
	}
	got, err := v.vcpu.Regs()
	if err != nil {
		return err
	}
	at := got.RDI - imageAt
	return fmt.Errorf("page %d word %d is not %+v", at/page, at%page/8, s)
}

// runs calls f for each run of neighbours in one state.
func (v *vmm) runs(pages []uint64, f func(p, n uint64, s pageState) error) error {
	for len(pages) > 0 {
		n := 1
		for n < len(pages) && pages[n] == pages[0]+uint64(n) && v.model[pages[n]] == v.model[pages[0]] {
			n++
		}
		if err := f(pages[0], uint64(n), v.model[pages[0]]); err != nil {
			return err
		}
		pages = pages[n:]
	}
	return nil
}

func (v *vmm) check(pages []uint64) error {
	return v.runs(pages, func(p, n uint64, s pageState) error { return v.call(codeAt, p, n, s) })
}

func (v *vmm) write(pages []uint64, seed uint64) error {
	for _, p := range pages {
		v.model[p] = pageState{seed: seed}
	}
	return v.runs(pages, func(p, n uint64, s pageState) error { return v.call(fillAt, p, n, s) })
}

// balloon gives pages back.
func (v *vmm) balloon(pages []uint64) error {
	for _, p := range pages {
		for _, r := range v.regions {
			if p < r.First || p >= r.First+r.N {
				continue
			}
			if _, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(r.at+(p-r.First)*page), page, unix.MADV_DONTNEED); errno != 0 {
				return fmt.Errorf("madvise: %w", errno)
			}
		}
		v.model[p] = pageState{zero: true}
	}
	return nil
}
