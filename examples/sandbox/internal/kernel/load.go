//go:build linux && amd64

package kernel

import (
	"debug/elf"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/image"
	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

const (
	// Addresses are the same in every run (Linux's own without randomization):
	// a sandbox example is read and debugged more often than it is attacked,
	// and the README says so.
	pieBase  = 0x5555_5555_4000
	stackTop = 0x7fff_ffff_f000

	stackSize  = 8 << 20
	stackGuard = 1 << 20 // unmapped for good below the stack: an overflow is a fault, not a neighbour

	maxScripts = 4 // interpreters that are scripts themselves

	pageSize = addr.PageSize
)

// program is a file that can be loaded, with what it is to be told. It owns a
// reference to file.
type program struct {
	file      *vfs.Open // its File is a *vfs.HostFile
	image     *image.Image
	argv, env []string
	execfn    string
}

// resolveProgram follows "#!" lines to an ELF file and checks it. It takes
// over the reference to file, also on error.
func (k *Kernel) resolveProgram(t *Task, file *vfs.Open, name string, argv, env []string) (*program, error) {
	for range maxScripts {
		host := file.File.(*vfs.HostFile)
		interp, arg, isScript := image.Script(host.File)
		if !isScript {
			im, err := image.Parse(host.File, host.Info().Size)
			if err != nil {
				file.Unref()
				return nil, err
			}
			return &program{file: file, image: im, argv: argv, env: env, execfn: name}, nil
		}
		file.Unref()
		next, canonical, err := k.Namespace.OpenExec(t.viewer(), interp)
		if err != nil {
			return nil, fmt.Errorf("interpreter %s: %w", interp, err)
		}
		head := []string{interp}
		if arg != "" {
			head = append(head, arg)
		}
		argv = append(append(head, name), argv[min(1, len(argv)):]...)
		file, name = vfs.NewOpen(next, canonical, unix.O_RDONLY), interp
	}
	file.Unref()
	return nil, unix.ELOOP
}

// execError reduces why a file cannot run to the errno of execve(2).
func execError(err error) error {
	switch {
	case errors.Is(err, image.ErrDynamic):
		return unix.ELIBBAD // not ENOEXEC: a shell would take the file for a script
	case errors.Is(err, image.ErrNotELF), errors.Is(err, image.ErrMachine),
		errors.Is(err, image.ErrTruncated), errors.Is(err, image.ErrBadSegments):
		return unix.ENOEXEC
	}
	return err
}

// entry is where a loaded program starts.
type entry struct{ rip, rsp uint64 }

// load builds the address space of a program. It takes over the reference to
// prog.file if it succeeds.
func (k *Kernel) load(prog *program) (*mm, entry, error) {
	as, err := k.Memory.NewAddressSpace(guestmem.SpaceOptions{})
	if err != nil {
		return nil, entry{}, err
	}
	start, err := k.fill(as, prog)
	if err != nil {
		return nil, entry{}, errors.Join(err, as.Close())
	}
	return &mm{k: k, as: as, exe: prog.file, argv: prog.argv, users: 1}, start, nil
}

func (k *Kernel) fill(as *guestmem.AddressSpace, prog *program) (entry, error) {
	base := uint64(0)
	if prog.image.PositionIndependent {
		base = pieBase
		if _, end := prog.image.Bounds(); end > stackTop-stackSize-stackGuard-base {
			return entry{}, fmt.Errorf("%w: %#x bytes do not fit above %#x", image.ErrBadSegments, end, base)
		}
	}
	obj, release, err := k.objects.get(prog.file.File.(*vfs.HostFile), prog.file.Path)
	if err != nil {
		return entry{}, err
	}
	defer release()
	for _, s := range prog.image.Segments {
		if err := k.mapSegment(as, obj, base, s); err != nil {
			return entry{}, fmt.Errorf("segment at %#x: %w", s.Addr, err)
		}
	}
	_, end := prog.image.Bounds()
	as.SetBreak(addr.GVA(base + end))
	rsp, err := k.buildStack(as, prog, base)
	if err != nil {
		return entry{}, fmt.Errorf("stack: %w", err)
	}
	return entry{rip: base + prog.image.Entry, rsp: rsp}, nil
}

// mapSegment maps a segment's pages of the file, and zero pages behind them.
// What lies in the last page of the file behind the segment is cleared, if the
// program may write there: it is where .bss begins.
func (k *Kernel) mapSegment(as *guestmem.AddressSpace, obj *guestmem.Object, base uint64, s image.Segment) error {
	var prot guestmem.Prot
	for flag, bit := range map[elf.ProgFlag]guestmem.Prot{elf.PF_R: guestmem.ProtRead, elf.PF_W: guestmem.ProtWrite, elf.PF_X: guestmem.ProtExec} {
		if s.Flags&flag != 0 {
			prot |= bit
		}
	}
	lead := s.Addr % pageSize
	start := base + s.Addr - lead
	fileEnd := start
	if s.FileSize > 0 {
		fileEnd = start + roundUp(lead+s.FileSize)
		if _, err := as.Map(k.ctx, guestmem.MapOptions{
			Addr: addr.GVA(start), Length: fileEnd - start, Prot: prot,
			Flags: guestmem.MapPrivate | guestmem.MapFixed, Object: obj, Offset: s.Offset - lead,
		}); err != nil {
			return err
		}
	}
	dataEnd := start + lead + s.FileSize
	if s.MemSize > s.FileSize && s.FileSize > 0 && prot&guestmem.ProtWrite != 0 && fileEnd > dataEnd {
		if _, err := as.WriteAt(k.ctx, make([]byte, fileEnd-dataEnd), addr.GVA(dataEnd)); err != nil {
			return err
		}
	}
	end := start + roundUp(lead+s.MemSize)
	if end <= fileEnd {
		return nil
	}
	_, err := as.Map(k.ctx, guestmem.MapOptions{
		Addr: addr.GVA(fileEnd), Length: end - fileEnd, Prot: prot,
		Flags: guestmem.MapPrivate | guestmem.MapFixed | guestmem.MapAnonymous,
	})
	return err
}

func roundUp(n uint64) uint64 { return (n + pageSize - 1) &^ (pageSize - 1) }
