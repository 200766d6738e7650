//go:build linux && amd64

package docs_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/kvm"
)

// Example_guest is run by TestGuestExample, where there is a /dev/kvm.
func Example_guest() {
	sys, err := kvm.Open()
	check(err)
	defer sys.Close()
	mem, err := guestmem.NewMemory(guestmem.MemoryOptions{Size: 64 << 20})
	check(err)
	defer mem.Close()
	// Before the first address space: the platform becomes the memory's view.
	vcpus, err := kvm.NewPlatform(sys, mem, kvm.PlatformOptions{})
	check(err)
	defer vcpus.Close()
	as, err := mem.NewAddressSpace(guestmem.SpaceOptions{})
	check(err)
	defer as.Close()

	ctx := context.Background()
	program := strings.NewReader("\xb8\x2a\x00\x00\x00\x0f\x05") // mov $42, %eax; syscall
	text, err := mem.NewFileObject(program, program.Size(), "program")
	check(err)
	defer text.Close()
	entry, err := as.Map(ctx, guestmem.MapOptions{
		Length: addr.PageSize,
		Prot:   guestmem.ProtRead | guestmem.ProtExec,
		Flags:  guestmem.MapPrivate,
		Object: text,
	})
	check(err)

	thread := vcpus.NewContext()
	defer thread.Close()
	thread.Regs.RIP = uint64(entry)
	for running := true; running; {
		exit, err := vcpus.Run(ctx, as, thread)
		check(err)
		switch exit.Kind {
		case kvm.ExitPageFault:
			check(as.Fault(ctx, exit.Addr, exit.Access))
		case kvm.ExitSyscall:
			fmt.Println("system call", thread.Regs.RAX)
			running = false
		default:
			fmt.Println("the guest dies of", exit)
			running = false
		}
	}
}

// Example_machine is run by TestGuestExample, too.
func Example_machine() {
	sys, err := kvm.Open()
	check(err)
	defer sys.Close()
	mem, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	check(err)
	defer mem.Close()
	_, err = mem.AddRegion(guestmem.RegionOptions{Base: 0, Size: 4 << 20})
	check(err)
	// In place of a boot loader: tables with which a vCPU begins in 64-bit mode.
	long, err := kvm.SetupLongMode(mem, kvm.LongModeOptions{Base: 0x1000})
	check(err)
	program := []byte("\xb0h\xe6\x80\xeb\xfe") // mov $'h', %al; out %al, $0x80; 1: jmp 1b
	_, err = mem.WriteAt(program, 0x100000)
	check(err)

	vm, err := sys.NewVM(mem, kvm.VMOptions{}) // its slots follow the regions from now on
	check(err)
	defer vm.Close()
	vcpu, err := vm.NewVCPU(0)
	check(err)
	check(long.Enter(vcpu, kvm.Ring3, kvm.GeneralRegs{RIP: 0x100000, RSP: 0x180000}))
	exit, err := vcpu.Run(context.Background())
	check(err)
	fmt.Println(exit)
}

func TestGuestExample(t *testing.T) {
	testutil.RequireKVM(t)
	mustPrint(t, Example_guest, "system call 42\n")
	mustPrint(t, Example_machine, "io: write port 0x80, 1 × 1 bytes: 68\n")
}

// mustPrint compares what an example prints, where not every host can run it.
func mustPrint(t *testing.T, example func(), want string) {
	t.Helper()
	stdout := os.Stdout
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	os.Stdout = w
	example()
	os.Stdout = stdout
	w.Close()
	got, err := io.ReadAll(r)
	r.Close()
	if err != nil || string(got) != want {
		t.Errorf("printed %q, %v, want %q", got, err, want)
	}
}
