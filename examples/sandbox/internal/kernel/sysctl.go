//go:build linux && amd64

package kernel

import (
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

// sysctls are the files of /proc/sys that programs and libraries read.
var sysctls = map[string]func() string{
	"fs/pipe-max-size":     func() string { return fmt.Sprintln(vfs.PipeSize) },
	"kernel/hostname":      func() string { return "sandbox\n" },
	"kernel/ngroups_max":   func() string { return "65536\n" },
	"kernel/osrelease":     func() string { return hostRelease() + "\n" },
	"kernel/ostype":        func() string { return "Linux\n" },
	"kernel/pid_max":       func() string { return fmt.Sprintln(maxPID) },
	"kernel/random/uuid":   uuid,
	"kernel/threads-max":   func() string { return fmt.Sprintln(maxTasks) },
	"vm/max_map_count":     func() string { return "65530\n" },
	"vm/overcommit_memory": func() string { return "1\n" },
}

func hostRelease() string {
	var host unix.Utsname
	if unix.Uname(&host) != nil {
		return ""
	}
	return unix.ByteSliceToString(host.Release[:])
}

// uuid is another one each time.
func uuid() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x\n", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// sysctlEntry finds a file below /proc/sys: "" is the directory itself.
func (k *Kernel) sysctlEntry(rel string) (*vfs.Entry, error) {
	if f, ok := sysctls[rel]; ok {
		return procFile(10, func() []byte { return []byte(f()) }), nil
	}
	below := make(map[string]uint8)
	for path := range sysctls {
		rest, ok := path, true
		if rel != "" {
			rest, ok = strings.CutPrefix(path, rel+"/")
		}
		if !ok {
			continue
		}
		name, _, isDir := strings.Cut(rest, "/")
		if below[name] = unix.DT_REG; isDir {
			below[name] = unix.DT_DIR
		}
	}
	if len(below) == 0 {
		return nil, unix.ENOENT
	}
	return procDir(4, func() []vfs.Name {
		names := dots()
		for _, name := range slices.Sorted(maps.Keys(below)) {
			names = append(names, vfs.Name{Name: name, Ino: 10, Type: below[name]})
		}
		return names
	}), nil
}

// limitsFile is /proc/PID/limits.
func (p *Process) limitsFile() string {
	rows := []struct {
		which      uint64
		name, unit string
	}{
		{unix.RLIMIT_CPU, "Max cpu time", "seconds"}, {unix.RLIMIT_FSIZE, "Max file size", "bytes"},
		{unix.RLIMIT_DATA, "Max data size", "bytes"}, {unix.RLIMIT_STACK, "Max stack size", "bytes"},
		{unix.RLIMIT_CORE, "Max core file size", "bytes"}, {unix.RLIMIT_NPROC, "Max processes", "processes"},
		{unix.RLIMIT_NOFILE, "Max open files", "files"}, {unix.RLIMIT_MEMLOCK, "Max locked memory", "bytes"},
		{unix.RLIMIT_AS, "Max address space", "bytes"},
	}
	show := func(v uint64) string {
		if v == unlimited {
			return "unlimited"
		}
		return fmt.Sprint(v)
	}
	p.k.mu.Lock()
	defer p.k.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%-25s %-20s %-20s %-10s\n", "Limit", "Soft Limit", "Hard Limit", "Units")
	for _, r := range rows {
		if l, err := p.limits.get(r.which); err == nil {
			fmt.Fprintf(&b, "%-25s %-20s %-20s %-10s\n", r.name, show(l.Cur), show(l.Max), r.unit)
		}
	}
	return b.String()
}
