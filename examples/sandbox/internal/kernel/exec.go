//go:build linux && amd64

package kernel

import (
	"path"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
	"github.com/guestmm/guestmm/guestmem/addr"
)

func sysExecve(t *Task, a args) (uint64, error) { return t.execve(atFDCWD, a[0], a[1], a[2], 0) }

func sysExecveat(t *Task, a args) (uint64, error) {
	return t.execve(int32(a[0]), a[1], a[2], a[3], int(a[4]))
}

func (t *Task) execve(dirfd int32, pathAddr, argvAddr, envAddr uint64, flags int) (uint64, error) {
	if flags&^(unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW) != 0 {
		return 0, unix.EINVAL
	}
	file, name, err := t.openProgram(dirfd, pathAddr, flags)
	if err != nil {
		return 0, err
	}
	budget := maxArgBytes
	argv, err := t.stringVector(argvAddr, &budget)
	var env []string
	if err == nil {
		env, err = t.stringVector(envAddr, &budget)
	}
	if err != nil {
		file.Unref()
		return 0, err
	}
	if len(argv) == 0 {
		argv = []string{""} // as Linux does since 5.18: programs rely on argv[0]
	}
	prog, err := t.k.resolveProgram(t, file, name, argv, env)
	if err != nil {
		return 0, execError(err)
	}
	t.k.mu.Lock()
	prog.stack = stackOf(t.proc.limits)
	t.k.mu.Unlock()
	m, start, err := t.k.load(prog)
	if err != nil {
		prog.release()
		return 0, execError(err)
	}
	if !t.becomeOnly() {
		m.release() // with the program; the process is ending
		return 0, errNoReturn
	}
	t.enter(m, start, prog)
	return 0, errNoReturn
}

func (t *Task) openProgram(dirfd int32, pathAddr uint64, flags int) (*vfs.Open, string, error) {
	name, err := t.path(pathAddr)
	if err != nil {
		return nil, "", err
	}
	v, err := t.viewerAt(dirfd, name)
	if name == "" && flags&unix.AT_EMPTY_PATH != 0 {
		name, v = "/proc/self/fd/"+itoa(int(dirfd)), t.viewer()
	} else if err != nil {
		return nil, "", err
	}
	host, canonical, err := t.k.Namespace.OpenExec(v, name)
	if err != nil {
		return nil, "", err
	}
	return vfs.NewOpen(host, canonical, unix.O_RDONLY), name, nil
}

// stringVector reads argv or envp. E2BIG past the budget, which it lowers.
func (t *Task) stringVector(at uint64, budget *int) (list []string, err error) {
	for at != 0 {
		ptr, err := get[uint64](t, at)
		if err != nil {
			return nil, err
		}
		if ptr == 0 {
			break
		}
		s, err := t.proc.mm.as.ReadCString(t.call, addr.GVA(ptr), min(maxArgString, *budget))
		switch {
		case isErrno(err, unix.ENAMETOOLONG):
			return nil, unix.E2BIG
		case err != nil:
			return nil, copyError(err)
		}
		if *budget -= len(s) + 1 + 8; *budget <= 0 {
			return nil, unix.E2BIG
		}
		list = append(list, s)
		at += 8
	}
	return list, nil
}

// enter puts the task at the start of a program: past the point of no return.
// It takes over m.
func (t *Task) enter(m *mm, start entry, prog *program) {
	p := t.proc
	t.k.mu.Lock()
	old := p.mm
	p.mm = m
	m.limitLocked(p)
	p.hasExeced = true
	p.dropTimersLocked()
	p.traits = p.traits.execed()
	p.actions = p.actions.afterExec()
	allDefault := *p.actions == actions{}
	t.name = commName(path.Base(prog.execfn))
	t.k.mu.Unlock()

	t.alt, t.clearTID = altStack{}, 0
	if old != nil {
		t.cpu.Reset()
		files := t.files.afterExec()
		t.k.mu.Lock()
		t.files = files
		t.k.mu.Unlock()
		old.release()
	}
	if !allDefault {
		t.leaveTable() // a new program's is empty
	}
	t.releaseParent()
	t.cpu.Regs = startRegs(start)
}

// releaseParent lets a vfork parent go on.
func (t *Task) releaseParent() {
	if t.vforkDone != nil {
		close(t.vforkDone)
		t.vforkDone = nil
	}
}
