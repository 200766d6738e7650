//go:build linux && amd64

package kvm

import (
	"errors"
	"testing"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"golang.org/x/sys/unix"
)

var (
	// progEntry answers call 1 with 42 and leaves the others to the gate.
	progEntry = program{`
	cmp $1, %rax
	jne 1f
	mov $42, %eax
	jmp *%rcx
1:	movabs $0xffffff8000001080, %r11
	jmp *%r11
`, "\x48\x83\xf8\x01\x75\x07\xb8\x2a\x00\x00\x00\xff\xe1\x49\xbb\x80\x10\x00\x00\x80\xff\xff\xff\x41\xff\xe3"}

	// progCalls makes the calls 1 and 2; RBX gets the first result.
	progCalls = program{`
	mov $1, %eax
	syscall
	mov %rax, %rbx
	mov $2, %eax
	syscall
	ud2
`, "\xb8\x01\x00\x00\x00\x0f\x05\x48\x89\xc3\xb8\x02\x00\x00\x00\x0f\x05\x0f\x0b"}

	// progGate jumps to the gate without a SYSCALL.
	progGate = program{`
	movabs $0xffffff8000001080, %rdx
	jmp *%rdx
`, "\x48\xba\x80\x10\x00\x00\x80\xff\xff\xff\xff\xe2"}
)

func TestGateIsTheStub(t *testing.T) {
	if SyscallGate != stubGVA+stubSyscall {
		t.Errorf("SyscallGate is %v, the stub is at %v", SyscallGate, stubGVA+stubSyscall)
	}
}

// Where the processor stays in ring 3, SYSCALL leads to the guest's own code,
// which answers or not; where that is missing, or may not be executed, and on
// other hosts, every call is an exit.
func TestSyscallEntry(t *testing.T) {
	m, p := newGuestMemory(t, 8<<20, PlatformOptions{MaxVCPUs: 2, SyscallEntry: codeAt(0)})
	if used := p.SyscallEntry() != 0; used != (p.traits.syscall == byFault) {
		t.Fatalf("the entry is used: %v; %v", used, p)
	}
	as := newGuestSpace(t, m, 1, progEntry, progCalls, progGate)
	defer as.Close()
	c := p.NewContext()
	defer c.Close()
	call := func(want uint64) {
		t.Helper()
		untilSyscall(t, p, as, c)
		if c.Regs.RAX != want {
			t.Errorf("call %d, want %d", c.Regs.RAX, want)
		}
	}
	start := func() {
		c.Regs = Regs{RIP: uint64(codeAt(1)), R12: 12}
	}
	answered := func() {
		t.Helper()
		start()
		if p.SyscallEntry() == 0 {
			call(1)
			c.Regs.RAX = 42
		}
		call(2)
		if c.Regs.RBX != 42 || c.Regs.R12 != 12 || c.Regs.RIP != uint64(codeAt(1))+17 {
			t.Errorf("after the second call: %+x", c.Regs)
		}
	}
	answered()
	if err := as.Protect(codeAt(0), addr.PageSize, guestmem.ProtRead); err != nil {
		t.Fatal(err)
	}
	start()
	call(1)
	call(2)
	if err := as.Protect(codeAt(0), addr.PageSize, guestmem.ProtRead|guestmem.ProtExec); err != nil {
		t.Fatal(err)
	}
	if err := as.Fault(t.Context(), codeAt(0), guestmem.Execute); err != nil {
		t.Fatal(err)
	}
	answered()
	if err := as.Unmap(codeAt(0), addr.PageSize); err != nil {
		t.Fatal(err)
	}
	start()
	call(1)
	call(2)

	// The gate takes who jumps there at their word, or is no place of theirs.
	c.Regs = Regs{RIP: uint64(codeAt(2)), RAX: 77, RCX: uint64(codeAt(1)), R11: 0x202}
	if p.SyscallEntry() != 0 {
		call(77)
		if c.Regs.RIP != uint64(codeAt(1)) {
			t.Errorf("goes on at %#x", c.Regs.RIP)
		}
		return
	}
	for {
		e, err := p.Run(t.Context(), as, c)
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == ExitPageFault && e.Addr != SyscallGate {
			if err := as.Fault(t.Context(), e.Addr, e.Access); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if e.Kind != ExitPageFault {
			t.Errorf("a jump to the gate is %v", e)
		}
		return
	}
}

func TestSyscallEntryIsAGuests(t *testing.T) {
	s := requireKVM(t)
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{Size: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, entry := range []addr.GVA{guestmem.DefaultHighest, SyscallGate, 1 << 63} {
		if p, err := NewPlatform(s, m, PlatformOptions{SyscallEntry: entry}); !errors.Is(err, unix.EINVAL) {
			t.Errorf("entry %v: %v, %v", entry, p, err)
		}
	}
	if n := m.Stats(); n.Supervisor != 0 {
		t.Errorf("%d frames of the platform's left", n.Supervisor)
	}
}
