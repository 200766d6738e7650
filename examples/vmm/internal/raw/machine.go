//go:build linux && amd64

package raw

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/kvm"
)

const (
	slotLogDirty = 1
	slotReadOnly = 2

	capManualDirtyLog = 168
	capDirtyRing      = 192
	capTripleFault    = 218

	ringEntries = 4096
	ringOffset  = 64 << 12

	exitIO = 2
)

// System is the open device.
type System struct {
	fd      int
	runSize int
}

// Open opens the device.
func Open() (*System, error) {
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	n, err := ioctl(fd, vcpuMmapSize, 0)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &System{fd: fd, runSize: n}, nil
}

// Close closes it.
func (s *System) Close() error { return unix.Close(s.fd) }

// Image is a template as files to be mapped.
type Image struct {
	Regions []guestmem.TemplateRegion
	Files   []*os.File
}

// NewImage opens the files of a template.
func NewImage(t *guestmem.Template) (*Image, error) {
	im := &Image{Regions: t.Regions()}
	for i := range im.Regions {
		f, err := t.File(i)
		if err != nil {
			return nil, errors.Join(err, im.Close())
		}
		im.Files = append(im.Files, f)
	}
	return im, nil
}

// Close closes the files.
func (im *Image) Close() (err error) {
	for _, f := range im.Files {
		err = errors.Join(err, f.Close())
	}
	return err
}

type vcpu struct {
	fd   int
	run  []byte
	ring []byte
	next uint32
}

// Machine is a VM with its memory.
type Machine struct {
	sys     *System
	fd      int
	dirty   kvm.DirtyMode
	regions []guestmem.TemplateRegion
	mem     [][]byte
	vcpus   []*vcpu
}

// Clone maps the image privately, and gives a new VM the state.
func (s *System) Clone(im *Image, state *kvm.MachineState, dirty kvm.DirtyMode) (_ *Machine, err error) {
	m := &Machine{sys: s, fd: -1, dirty: dirty, regions: im.Regions}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	for i, r := range im.Regions {
		b, err := unix.Mmap(int(im.Files[i].Fd()), 0, int(r.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_NORESERVE)
		if err != nil {
			return nil, err
		}
		m.mem = append(m.mem, b)
	}
	if m.fd, err = ioctl(s.fd, createVM, 0); err != nil {
		return nil, err
	}
	identity := uint64(0xfffbc000)
	if err := ioctlPtr(m.fd, setIdentityMap, &identity); err != nil {
		return nil, err
	}
	if _, err := ioctl(m.fd, setTSSAddr, 0xfffbd000); err != nil {
		return nil, err
	}
	// So that a state with a pending triple fault is accepted, where there is such.
	_ = ioctlPtr(m.fd, enableCap, &capability{number: capTripleFault, args: [4]uint64{1}})
	if err := m.trackDirty(); err != nil {
		return nil, err
	}
	for i, r := range im.Regions {
		if err := m.SetSlot(i, uint64(r.Base), m.mem[i], r.ReadOnly); err != nil {
			return nil, err
		}
	}
	if _, err := ioctl(m.fd, createIRQChip, 0); err != nil {
		return nil, err
	}
	if err := ioctlPtr(m.fd, createPIT2, &pitConfig{flags: 1}); err != nil {
		return nil, err
	}
	for id := range state.VCPUs {
		if err := m.addVCPU(id); err != nil {
			return nil, err
		}
	}
	return m, m.load(state)
}

func (m *Machine) trackDirty() error {
	switch m.dirty {
	case kvm.DirtyLog:
		return ioctlPtr(m.fd, enableCap, &capability{number: capManualDirtyLog, args: [4]uint64{1}})
	case kvm.DirtyRing:
		return ioctlPtr(m.fd, enableCap, &capability{number: capDirtyRing, args: [4]uint64{ringEntries * 16}})
	}
	return nil
}

// SetSlot sets a memory slot; with no memory it deletes it.
func (m *Machine) SetSlot(id int, gpa uint64, mem []byte, isReadOnly bool) error {
	r := &memoryRegion{slot: uint32(id), gpa: gpa, size: uint64(len(mem))}
	if len(mem) > 0 {
		r.hva = addressOf(mem)
	}
	if isReadOnly {
		r.flags = slotReadOnly
	} else if m.dirty != kvm.DirtyNone {
		r.flags = slotLogDirty
	}
	return ioctlPtr(m.fd, setMemoryRegion, r)
}

func (m *Machine) addVCPU(id int) (err error) {
	v := &vcpu{}
	if v.fd, err = ioctl(m.fd, createVCPU, uintptr(id)); err != nil {
		return err
	}
	m.vcpus = append(m.vcpus, v)
	if v.run, err = unix.Mmap(v.fd, 0, m.sys.runSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return err
	}
	if m.dirty == kvm.DirtyRing {
		v.ring, err = unix.Mmap(v.fd, ringOffset, ringEntries*16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	return err
}

// Run runs a vCPU until it rings the doorbell.
func (m *Machine) Run(id int) error {
	v := m.vcpus[id]
	for {
		_, err := ioctl(v.fd, runVCPU, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case *wordAt(v.run, 8) == exitIO:
			return nil
		default:
			return fmt.Errorf("raw vCPU %d: exit %d", id, *wordAt(v.run, 8))
		}
	}
}

// Memory returns the mapping of the region that begins at gpa.
func (m *Machine) Memory(gpa uint64) []byte {
	for i, r := range m.regions {
		if uint64(r.Base) == gpa {
			return m.mem[i]
		}
	}
	return nil
}

// Close ends it.
func (m *Machine) Close() (err error) {
	for _, v := range m.vcpus {
		for _, b := range [][]byte{v.run, v.ring} {
			if b != nil {
				err = errors.Join(err, unix.Munmap(b))
			}
		}
		err = errors.Join(err, unix.Close(v.fd))
	}
	if m.fd >= 0 {
		err = errors.Join(err, unix.Close(m.fd))
	}
	for _, b := range m.mem {
		err = errors.Join(err, unix.Munmap(b))
	}
	return err
}
