//go:build linux && amd64

package kvm_test

import (
	"context"
	"fmt"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/kvm"
)

// A guest of three instructions, in ring 3, that says one byte by a port.
func ExampleSystem_NewVM() {
	code := []byte{
		0xb0, 'h', //       mov $'h', %al
		0xe6, 0x80, //      out %al, $0x80
		0xeb, 0xfe, //   1: jmp 1b
	}
	if err := hello(code); err != nil {
		fmt.Println(err)
	}
}

func hello(code []byte) error {
	sys, err := kvm.Open()
	if err != nil {
		return err
	}
	defer sys.Close()
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	if err != nil {
		return err
	}
	defer m.Close()
	if _, err := m.AddRegion(guestmem.RegionOptions{Size: 4 << 20}); err != nil {
		return err
	}
	long, err := kvm.SetupLongMode(m, kvm.LongModeOptions{Base: 0x1000})
	if err != nil {
		return err
	}
	if _, err := m.WriteAt(code, 0x100000); err != nil {
		return err
	}
	vm, err := sys.NewVM(m, kvm.VMOptions{})
	if err != nil {
		return err
	}
	defer vm.Close()
	v, err := vm.NewVCPU(0)
	if err != nil {
		return err
	}
	if err := long.Enter(v, kvm.Ring3, kvm.GeneralRegs{RIP: 0x100000, RSP: 0x180000}); err != nil {
		return err
	}
	exit, err := v.Run(context.Background())
	if err != nil {
		return err
	}
	fmt.Printf("%v, %q\n", exit, exit.Data)
	return nil
}
