//go:build linux && amd64

package machine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/bench/internal/workload"
)

// rawKVM makes clones of a sealed guest by system calls alone.
type rawKVM struct {
	*sealed
	fd      int
	runSize int
	image   *os.File
}

func openRaw(run *workload.Run) (*rawKVM, error) {
	s, err := seal(run)
	if err != nil {
		return nil, err
	}
	k := &rawKVM{sealed: s}
	if k.fd, err = unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("/dev/kvm: %w", err)
	}
	run.OnClose(func() error { return unix.Close(k.fd) })
	if k.runSize, err = ioctl(k.fd, runSize, 0); err != nil {
		return nil, err
	}
	if k.image, err = s.tmpl.File(0); err != nil {
		return nil, err
	}
	run.OnClose(k.image.Close)
	return k, nil
}

// A rawClone is one that has exited once more. The descriptors are -1 until they
// are there.
type rawClone struct {
	mem, page []byte
	vm, cpu   int
}

func (k *rawKVM) clone() (c *rawClone, err error) {
	c = &rawClone{vm: -1, cpu: -1}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if c.mem, err = unix.Mmap(int(k.image.Fd()), 0, templateSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_NORESERVE); err != nil {
		return c, err
	}
	for { // a signal of the runtime's interrupts it
		if c.vm, err = ioctl(k.fd, createVM, 0); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		c.vm = -1
		return c, err
	}
	if err := ioctlPtr(c.vm, setMemoryRegion, &memoryRegion{size: templateSize, hva: addressOf(c.mem)}); err != nil {
		return c, err
	}
	if c.cpu, err = ioctl(c.vm, createVCPU, 0); err != nil {
		c.cpu = -1
		return c, err
	}
	if c.page, err = unix.Mmap(c.cpu, 0, k.runSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return c, err
	}
	list := &cpuidList{n: uint32(len(k.state.CPUID))}
	if copy(list.entries[:], k.state.CPUID) < len(k.state.CPUID) {
		return c, errors.New("too many CPUID leaves")
	}
	if err := ioctlPtr(c.cpu, setCPUID2, list); err != nil {
		return c, err
	}
	if err := ioctlPtr(c.cpu, setRegs, &k.state.Regs); err != nil {
		return c, err
	}
	if err := ioctlPtr(c.cpu, setSregs2, &k.state.Sregs); err != nil {
		return c, err
	}
	return c, c.runToPort()
}

func (c *rawClone) runToPort() error {
	for {
		_, err := ioctl(c.cpu, runVCPU, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if reason := binary.NativeEndian.Uint32(c.page[exitReason:]); reason != exitIO {
			return fmt.Errorf("the guest exits for reason %d", reason)
		}
		return nil
	}
}

// Close also closes what was made in part.
func (c *rawClone) Close() (err error) {
	if c.page != nil {
		err = errors.Join(err, unix.Munmap(c.page))
	}
	for _, fd := range []int{c.cpu, c.vm} {
		if fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
		}
	}
	if c.mem != nil {
		err = errors.Join(err, unix.Munmap(c.mem))
	}
	return err
}

func rawCloneToExit(run *workload.Run) error {
	k, err := openRaw(run)
	if err != nil {
		return err
	}
	inTurn(run, func() (closer, error) { return k.clone() })
	return nil
}

func rawExitByPort(run *workload.Run) error {
	k, err := openRaw(run)
	if err != nil {
		return err
	}
	c, err := k.clone()
	if err != nil {
		return err
	}
	run.OnClose(c.Close)
	run.Workers = []workload.Op{func(int) error { return c.runToPort() }}
	return nil
}
