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

	stackSize  = 8 << 20 // by default: RLIMIT_STACK
	stackGuard = 1 << 20 // unmapped for good below the stack: an overflow is a fault, not a neighbour

	maxScripts = 4 // interpreters that are scripts themselves

	pageSize = addr.PageSize
)

// program is a file that can be loaded, with what it is to be told. It owns a
// reference to each file.
type program struct {
	file      *vfs.Open // its File is a vfs.Program
	image     *image.Image
	interp    *vfs.Open // of a dynamic program, else nil; its File is a vfs.Program
	loader    *image.Image
	argv, env []string
	execfn    string
	stack     uint64 // bytes of stack; 0: stackSize
}

// Stacks are mapped whole, as large as RLIMIT_STACK says at exec, within bounds: Linux
// puts no arguments on less, and more than that would be in the way of everything else.
const (
	minStack = 33 * pageSize
	maxStack = 1 << 30
)

// stackSize is how large the program's stack is.
func (p *program) stackSize() uint64 {
	if p.stack == 0 {
		return stackSize
	}
	return p.stack
}

// stackOf is the stack of a program that a process with these limits executes.
func stackOf(l rlimits) uint64 {
	set, err := l.get(unix.RLIMIT_STACK)
	if err != nil || set.Cur == unlimited {
		return stackSize
	}
	return roundUp(min(max(set.Cur, minStack), maxStack))
}

// release drops the references.
func (p *program) release() {
	p.file.Unref()
	p.releaseInterp()
}

func (p *program) releaseInterp() {
	if p.interp != nil {
		p.interp.Unref()
		p.interp = nil
	}
}

// resolveProgram follows "#!" lines to an ELF file and checks it. It takes
// over the reference to file, also on error.
func (k *Kernel) resolveProgram(t *Task, file *vfs.Open, name string, argv, env []string) (*program, error) {
	for range maxScripts {
		interp, arg, isScript := image.Script(file.File.(vfs.Program).Content())
		if !isScript {
			return k.resolveELF(t, &program{file: file, argv: argv, env: env, execfn: name})
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

// resolveELF checks prog.file and, if it is dynamic, the interpreter that it
// names, which is looked for below the root alone. It takes over prog.
func (k *Kernel) resolveELF(t *Task, prog *program) (_ *program, err error) {
	defer func() {
		if err != nil {
			prog.release()
		}
	}()
	if prog.image, err = parse(prog.file.File.(vfs.Program)); err != nil {
		return nil, err
	}
	if prog.image.Interpreter == "" {
		return prog, nil
	}
	name := prog.image.Interpreter
	loader, canonical, err := k.Namespace.OpenExec(t.viewer(), name)
	if err != nil {
		return nil, fmt.Errorf("interpreter %q: %w", name, err)
	}
	prog.interp = vfs.NewOpen(loader, canonical, unix.O_RDONLY)
	if prog.loader, err = parse(loader); err != nil {
		// Not the sentinels of the program itself: to a shell they would mean
		// that the program is a script.
		return nil, fmt.Errorf("%w %q: %v", image.ErrInterpreter, name, err)
	}
	return prog, nil
}

func parse(f vfs.Program) (*image.Image, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	return image.Parse(f.Content(), size)
}

// objectOf is what a file's pages are mapped from. It stays until release, and what has
// been mapped of it by then stays mapped. ENODEV for what is no file.
func (k *Kernel) objectOf(file *vfs.Open) (obj *guestmem.Object, release func(), err error) {
	switch f := file.File.(type) {
	case *vfs.HostFile:
		return k.objects.get(f, file.Path)
	case *vfs.TmpFile:
		// The description keeps the pages until an area does.
		held := file.Ref()
		pages, err := f.Pages(k.newPages(file.Path))
		if err != nil {
			held.Unref()
			return nil, nil, err
		}
		return pages.(*filePages).obj, held.Unref, nil
	}
	return nil, nil, unix.ENODEV
}

// execError reduces why a file cannot run to the errno of execve(2).
func execError(err error) error {
	switch {
	case errors.Is(err, image.ErrInterpreter):
		return unix.ELIBBAD // not ENOEXEC: a shell would take the file for a script
	case errors.Is(err, image.ErrNotELF), errors.Is(err, image.ErrMachine),
		errors.Is(err, image.ErrTruncated), errors.Is(err, image.ErrBadSegments):
		return unix.ENOEXEC
	}
	return err
}

// entry is where a loaded program starts.
type entry struct{ rip, rsp uint64 }

// load builds the address space of a program. It takes over the references of
// prog if it succeeds.
func (k *Kernel) load(prog *program) (*mm, entry, error) {
	as, err := k.newSpace()
	if err != nil {
		return nil, entry{}, err
	}
	start, err := k.fill(as, prog)
	if err != nil {
		return nil, entry{}, errors.Join(err, as.Close())
	}
	prog.releaseInterp()
	return &mm{k: k, as: as, exe: prog.file, argv: prog.argv, env: prog.env, stack: prog.stackSize(), table: k.hasEntry() && k.Trace == nil, users: 1}, start, nil
}

// layout is where the parts of a program have been put.
type layout struct {
	base   uint64 // of the program
	loader uint64 // AT_BASE: of the interpreter; 0 without one
	vdso   uint64 // AT_SYSINFO_EHDR; 0 without one
}

// fill maps the stack first: what has no address of its own goes below it.
func (k *Kernel) fill(as *guestmem.AddressSpace, prog *program) (entry, error) {
	var at layout
	if k.clocks != nil {
		at.vdso = vdsoAddr
	}
	if prog.image.PositionIndependent {
		at.base = pieBase
		if _, end := prog.image.Bounds(); end > stackTop-prog.stackSize()-stackGuard-at.base {
			return entry{}, fmt.Errorf("%w: %#x bytes do not fit above %#x", image.ErrBadSegments, end, at.base)
		}
	}
	if err := k.mapStack(as, prog); err != nil {
		return entry{}, fmt.Errorf("stack: %w", err)
	}
	if err := k.mapImage(as, prog.file, prog.image, at.base); err != nil {
		return entry{}, err
	}
	_, end := prog.image.Bounds()
	as.SetBreak(addr.GVA(at.base + end))
	rip := at.base + prog.image.Entry
	if prog.loader != nil {
		var err error
		if at.loader, err = k.mapLoader(as, prog); err != nil {
			return entry{}, fmt.Errorf("interpreter %q: %w", prog.image.Interpreter, err)
		}
		rip = at.loader + prog.loader.Entry
	}
	k.populate(as, prog, at)
	rsp, err := k.writeStack(as, prog, at)
	if err != nil {
		return entry{}, fmt.Errorf("stack: %w", err)
	}
	return entry{rip: rip, rsp: rsp}, nil
}

// mapLoader maps a dynamic program's interpreter where there is room, and
// returns its base.
func (k *Kernel) mapLoader(as *guestmem.AddressSpace, prog *program) (base uint64, err error) {
	if prog.loader.PositionIndependent {
		first, end := prog.loader.Bounds()
		hole, err := as.Map(k.ctx, guestmem.MapOptions{
			Length: end - first, Flags: guestmem.MapPrivate | guestmem.MapAnonymous | guestmem.MapNoReserve,
		})
		if err != nil {
			return 0, err
		}
		// Between the segments nothing stays mapped, as under Linux.
		if err := as.Unmap(hole, end-first); err != nil {
			return 0, err
		}
		base = uint64(hole) - first
	}
	return base, k.mapImage(as, prog.interp, prog.loader, base)
}

func (k *Kernel) mapImage(as *guestmem.AddressSpace, file *vfs.Open, im *image.Image, base uint64) error {
	obj, release, err := k.objectOf(file)
	if err != nil {
		return err
	}
	defer release()
	for _, s := range im.Segments {
		if err := k.mapSegment(as, obj, base, s); err != nil {
			return fmt.Errorf("segment at %#x: %w", s.Addr, err)
		}
	}
	return nil
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
