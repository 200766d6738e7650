//go:build linux && amd64

package kernel

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

// procEntry finds a file below /proc: "" is the directory itself.
func (t *Task) procEntry(rel string) (*vfs.Entry, error) {
	head, rest, _ := strings.Cut(rel, "/")
	switch head {
	case "":
		return procDir(1, t.k.procNames), nil
	case "self", "thread-self":
		if rest == "" {
			return procLink(2, func() string { return itoa(t.proc.pid) }), nil
		}
	case "cpuinfo", "meminfo", "uptime", "stat", "loadavg", "version", "mounts", "filesystems":
		if rest == "" {
			return procFile(3, func() []byte { return []byte(t.k.systemFile(head)) }), nil
		}
	case "sys":
		return t.k.sysctlEntry(rest)
	default:
		pid, err := strconv.Atoi(head)
		if err != nil {
			return nil, unix.ENOENT
		}
		return t.processEntry(pid, rest)
	}
	return nil, unix.ENOTDIR
}

func procDir(ino uint64, names func() []vfs.Name) *vfs.Entry {
	return &vfs.Entry{Mode: unix.S_IFDIR | 0o555, Ino: ino, Names: names}
}

func procFile(ino uint64, content func() []byte) *vfs.Entry {
	return &vfs.Entry{Mode: unix.S_IFREG | 0o444, Ino: ino, Content: content}
}

func procLink(ino uint64, target func() string) *vfs.Entry {
	return &vfs.Entry{Mode: unix.S_IFLNK | 0o777, Ino: ino, Target: target}
}

func dots() []vfs.Name {
	return []vfs.Name{{Name: ".", Ino: 1, Type: unix.DT_DIR}, {Name: "..", Ino: 1, Type: unix.DT_DIR}}
}

func (k *Kernel) procNames() []vfs.Name {
	names := dots()
	for _, name := range []string{"cpuinfo", "meminfo", "uptime", "stat", "loadavg", "version", "mounts", "filesystems"} {
		names = append(names, vfs.Name{Name: name, Ino: 3, Type: unix.DT_REG})
	}
	names = append(names, vfs.Name{Name: "self", Ino: 2, Type: unix.DT_LNK}, vfs.Name{Name: "sys", Ino: 4, Type: unix.DT_DIR})
	k.mu.Lock()
	defer k.mu.Unlock()
	for pid := range k.processes {
		names = append(names, vfs.Name{Name: itoa(pid), Ino: uint64(pid) << 8, Type: unix.DT_DIR})
	}
	return names
}

var processFiles = []string{"cmdline", "comm", "exe", "cwd", "root", "fd", "maps", "stat", "statm", "status", "task", "environ", "limits", "mem", "mounts", "oom_score_adj"}

// processEntry finds a file below /proc/PID.
func (t *Task) processEntry(pid int, rel string) (*vfs.Entry, error) {
	t.k.mu.Lock()
	p, err := t.k.processLocked(pid)
	t.k.mu.Unlock()
	if err != nil {
		return nil, unix.ENOENT
	}
	ino := uint64(pid) << 8
	switch head, rest, _ := strings.Cut(rel, "/"); {
	case rel == "":
		return procDir(ino, func() []vfs.Name {
			names := dots()
			for i, name := range processFiles {
				names = append(names, vfs.Name{Name: name, Ino: ino + uint64(i), Type: unix.DT_UNKNOWN})
			}
			return names
		}), nil
	case rel == "exe":
		e := procLink(ino+1, func() string { return p.exePath() })
		e.Jump = p.openExe
		return e, nil
	case rel == "cwd":
		return procLink(ino+2, p.dir), nil
	case rel == "root":
		return procLink(ino+3, func() string { return "/" }), nil
	case rel == "fd" && p == t.proc: // another's table may be changing hands
		return procDir(ino+4, t.fdNames), nil
	case rel == "mem":
		return &vfs.Entry{Mode: unix.S_IFREG | 0o600, Ino: ino + 9, Jump: p.openMem}, nil
	case rel == "task":
		return procDir(ino+7, p.taskNames), nil
	case head == "task":
		return p.taskEntry(ino+8, rest)
	case head == "fd" && p == t.proc:
		return t.fdEntry(ino+5, rest)
	}
	for _, name := range []string{"cmdline", "comm", "maps", "stat", "statm", "status", "environ", "limits", "mounts", "oom_score_adj"} {
		if rel == name {
			return procFile(ino+6, func() []byte { return []byte(p.file(name)) }), nil
		}
	}
	return nil, unix.ENOENT
}

// memory returns the process's memory with a user more, nil if it is gone.
func (p *Process) memory() *mm {
	p.k.mu.Lock()
	defer p.k.mu.Unlock()
	if p.mm == nil {
		return nil
	}
	return p.mm.refLocked()
}

func (p *Process) exePath() string {
	m := p.memory()
	if m == nil {
		return ""
	}
	defer m.release()
	return m.exe.Path
}

func (p *Process) openExe() (*vfs.Open, error) {
	m := p.memory()
	if m == nil {
		return nil, unix.ENOENT
	}
	defer m.release()
	// A description of its own: an offset is not to be shared with others.
	f, err := m.exe.File.(vfs.Program).Again()
	if err != nil {
		return nil, err
	}
	return vfs.NewOpen(f, m.exe.Path, unix.O_RDONLY), nil
}

// dir is the directory of its first thread, of which the others seldom differ.
func (p *Process) dir() string {
	p.k.mu.Lock()
	var fs *fsContext
	if t := p.leaderLocked(); t != nil {
		fs = t.fs
	}
	p.k.mu.Unlock()
	if fs == nil {
		return "" // a zombie
	}
	return fs.dir()
}

func (t *Task) fdNames() []vfs.Name {
	names := dots()
	for _, fd := range t.files.names() {
		names = append(names, vfs.Name{Name: itoa(fd), Ino: uint64(fd), Type: unix.DT_LNK})
	}
	return names
}

func (p *Process) taskNames() []vfs.Name {
	names := dots()
	p.k.mu.Lock()
	defer p.k.mu.Unlock()
	for tid := range p.tasks {
		names = append(names, vfs.Name{Name: itoa(tid), Ino: uint64(tid) << 8, Type: unix.DT_DIR})
	}
	return names
}

// taskEntry finds a file below /proc/PID/task: of each thread its name alone,
// which is what pthread_getname_np reads.
func (p *Process) taskEntry(ino uint64, rel string) (*vfs.Entry, error) {
	head, rest, _ := strings.Cut(rel, "/")
	tid, err := strconv.Atoi(head)
	if err != nil {
		return nil, unix.ENOENT
	}
	p.k.mu.Lock()
	t := p.tasks[tid]
	p.k.mu.Unlock()
	switch {
	case t == nil:
		return nil, unix.ENOENT
	case rest == "":
		return procDir(ino, func() []vfs.Name {
			return append(dots(), vfs.Name{Name: "comm", Ino: ino + 1, Type: unix.DT_REG})
		}), nil
	case rest == "comm":
		return procFile(ino+1, func() []byte { return []byte(t.comm() + "\n") }), nil
	}
	return nil, unix.ENOENT
}

func (t *Task) fdEntry(ino uint64, name string) (*vfs.Entry, error) {
	fd, err := strconv.Atoi(name)
	if err != nil {
		return nil, unix.ENOENT
	}
	o, err := t.files.get(fd)
	if err != nil {
		return nil, unix.ENOENT
	}
	defer o.Unref()
	e := procLink(ino, func() string {
		if o.Path == "" {
			return fmt.Sprintf("host:[%d]", fd)
		}
		return o.Path
	})
	e.Jump = func() (*vfs.Open, error) { return t.files.get(fd) }
	return e, nil
}

// file writes one of the files of /proc/PID.
func (p *Process) file(name string) string {
	m := p.memory()
	if m != nil {
		defer m.release()
	}
	p.k.mu.Lock()
	state, comm, ppid := "S", "", initPID
	switch {
	case p.zombie:
		state = "Z"
	case p.stopped:
		state = "T"
	}
	if t := p.leaderLocked(); t != nil {
		comm = t.name
	}
	if p.parent != nil {
		ppid = p.parent.pid
	}
	pgid, sid, spent, threads := p.pgid, p.sid, p.clock.now(), len(p.tasks)
	p.k.mu.Unlock()
	size, present := uint64(0), uint64(0)
	if m != nil && (name == "statm" || name == "stat" || name == "status") {
		for a := range m.as.Areas() {
			size += a.Range.Len()
		}
		present = m.resident()
		raise(&p.usage.most, present)
	}
	switch name {
	case "cmdline":
		if m == nil || len(m.argv) == 0 {
			return ""
		}
		return strings.Join(m.argv, "\x00") + "\x00"
	case "comm":
		return comm + "\n"
	case "environ":
		if m == nil || len(m.env) == 0 {
			return ""
		}
		return strings.Join(m.env, "\x00") + "\x00"
	case "limits":
		return p.limitsFile()
	case "mounts":
		return p.k.systemFile("mounts")
	case "oom_score_adj":
		return "0\n"
	case "maps":
		if m == nil {
			return ""
		}
		return m.as.String()
	case "statm":
		return fmt.Sprintf("%d %d 0 0 0 %d 0\n", size/pageSize, present/pageSize, size/pageSize)
	case "status":
		return fmt.Sprintf("Name:\t%s\nState:\t%s\nTgid:\t%d\nPid:\t%d\nPPid:\t%d\nUid:\t%d\t%d\t%d\t%d\nGid:\t%d\t%d\t%d\t%d\nVmPeak:\t%d kB\nVmSize:\t%d kB\nVmHWM:\t%d kB\nVmRSS:\t%d kB\nThreads:\t%d\n",
			comm, state, p.pid, p.pid, ppid, os.Getuid(), os.Geteuid(), os.Geteuid(), os.Geteuid(),
			os.Getgid(), os.Getegid(), os.Getegid(), os.Getegid(), size>>10, size>>10, max(p.usage.most.Load(), present)>>10, present>>10, threads)
	}
	const tick = 10 * time.Millisecond
	return fmt.Sprintf("%d (%s) %s %d %d %d 0 -1 0 0 0 0 0 %d %d 0 0 20 0 %d 0 0 %d %d%s\n",
		p.pid, comm, state, ppid, pgid, sid, spent.user/tick, spent.system/tick, threads, size, present/pageSize, strings.Repeat(" 0", 28))
}

// systemFile writes one of the files that are the same for everyone.
func (k *Kernel) systemFile(name string) string {
	up := time.Since(k.started).Seconds()
	switch name {
	case "cpuinfo":
		var b strings.Builder
		for i := range k.VCPUs {
			fmt.Fprintf(&b, "processor\t: %d\nvendor_id\t: guestmm\nmodel name\t: vCPU\n\n", i)
		}
		return b.String()
	case "meminfo":
		used := uint64(k.Memory.Stats().FramesInUse) * pageSize
		free := k.MemorySize - min(used, k.MemorySize)
		return fmt.Sprintf("MemTotal:       %8d kB\nMemFree:        %8d kB\nMemAvailable:   %8d kB\nBuffers:               0 kB\nCached:                0 kB\nSwapTotal:             0 kB\nSwapFree:              0 kB\n",
			k.MemorySize>>10, free>>10, free>>10)
	case "uptime":
		return fmt.Sprintf("%.2f 0.00\n", up)
	case "loadavg":
		return "0.00 0.00 0.00 1/1 1\n"
	case "version":
		return "Linux version (guestmm sandbox)\n"
	case "mounts":
		return "root / rootfs ro 0 0\nproc /proc proc ro 0 0\ndev /dev devtmpfs ro 0 0\ntmp /tmp tmpfs rw 0 0\n"
	case "filesystems":
		return "nodev\trootfs\nnodev\tproc\nnodev\ttmpfs\n"
	}
	return fmt.Sprintf("cpu  0 0 0 0 0 0 0 0 0 0\nbtime %d\nprocesses %d\n", k.started.Unix(), k.stats.processes.Load())
}
