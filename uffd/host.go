package uffd

import (
	"fmt"
	"strconv"
	"strings"
)

// A host is what a report reads of the machine. Tests have hosts of their own.
type host struct {
	// read returns a file of /proc or /sys, without the white space around it.
	read func(path string) (string, error)
	// release is the kernel's, as uname(2) has it.
	release func() (string, error)
	// newMemfd tries memfd_create(2).
	newMemfd func() error
	// kvmExtension opens /dev/kvm and asks for an extension.
	kvmExtension func(number int) (value int, err error)
}

// check makes a Check of a file: judge sees what is in it.
func (h *host) check(name, path string, judge func(value string) Check) Check {
	value, err := h.read(path)
	if err != nil {
		return Check{name, Inconclusive, err.Error(), ""}
	}
	c := judge(value)
	c.Name = name
	return c
}

func (h *host) kernel() Check {
	release, err := h.release()
	if err != nil {
		return Check{"kernel", Inconclusive, err.Error(), ""}
	}
	return Check{"kernel", OK, "Linux " + release, ""}
}

// syscallAccess: who may call userfaultfd(2) for faults of the kernel too.
func (h *host) syscallAccess() Check {
	return h.check("vm.unprivileged_userfaultfd", "/proc/sys/vm/unprivileged_userfaultfd", func(v string) Check {
		if v == "0" {
			return Check{Status: Note,
				Detail: "0: the system call is for CAP_SYS_PTRACE alone; " + deviceName + " goes by its mode",
				Cure:   "grant access to " + deviceName + "; it is the narrower right than this setting"}
		}
		return Check{Detail: v + ": everybody may call userfaultfd(2)"}
	})
}

const capSysPtrace = 19

// capability: whether this process may trace others.
func (h *host) capability() Check {
	return h.check("CAP_SYS_PTRACE", "/proc/self/status", func(v string) Check {
		set, err := statusField(v, "CapEff")
		if err != nil {
			return Check{Status: Inconclusive, Detail: err.Error()}
		}
		if set&(1<<capSysPtrace) == 0 {
			return Check{Status: Lack, Detail: "this process lacks it: no fork events, and userfaultfd(2) only as vm.unprivileged_userfaultfd allows",
				Cure: "setcap cap_sys_ptrace+ep, or AmbientCapabilities=CAP_SYS_PTRACE in the unit; serving needs it only where " + deviceName + " cannot be opened"}
		}
		return Check{Detail: "this process has it"}
	})
}

// statusField reads a hexadecimal field of /proc/PID/status.
func statusField(status, name string) (uint64, error) {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		}
	}
	return 0, fmt.Errorf("no %s in /proc/self/status", name)
}

func (h *host) memfd() Check {
	if err := h.newMemfd(); err != nil {
		return Check{"memfd", Lack, "memfd_create: " + err.Error(), "use Linux 3.17 or later, and let seccomp pass memfd_create"}
	}
	return Check{"memfd", OK, "memory that clones can share", ""}
}

// hugePages: the pool of 2 MiB pages.
func (h *host) hugePages() Check {
	const name, dir = "hugetlb-pool", "/sys/kernel/mm/hugepages/hugepages-2048kB/"
	total, err := h.number(dir + "nr_hugepages")
	if err != nil {
		return Check{name, Lack, err.Error(), "use a kernel with CONFIG_HUGETLBFS to restore guests of 2 MiB pages"}
	}
	free, err := h.number(dir + "free_hugepages")
	if err != nil {
		return Check{name, Inconclusive, err.Error(), ""}
	}
	detail := fmt.Sprintf("%d of %d pages of 2 MiB are free", free, total)
	if free == 0 {
		return Check{name, Lack, detail, cureHugetlb + ", where guests of 2 MiB pages are restored"}
	}
	return Check{name, OK, detail, ""}
}

func (h *host) number(path string) (int64, error) {
	v, err := h.read(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s holds %q", path, v)
	}
	return n, nil
}

// shmemHugePages: huge pages of shared memory let KVM map 2 MiB around one page
// that was installed.
func (h *host) shmemHugePages() Check {
	return h.check("shmem-thp", "/sys/kernel/mm/transparent_hugepage/shmem_enabled", func(v string) Check {
		chosen := selected(v)
		switch chosen {
		case "never", "deny", "advise":
			return Check{Detail: chosen + ": memfds have 4 KiB pages unless asked otherwise"}
		case "":
			return Check{Status: Inconclusive, Detail: fmt.Sprintf("%q selects nothing", v)}
		default:
			return Check{Status: Note, Detail: chosen + ": a page that is installed in a memfd may come as one of 2 MiB, around which nothing faults any more",
				Cure: "MADV_NOHUGEPAGE on the memfd's mapping, serve it by minor faults, or write never to that file"}
		}
	})
}

// selected returns the word in brackets of "always [madvise] never".
func selected(v string) string {
	_, rest, ok := strings.Cut(v, "[")
	word, _, closed := strings.Cut(rest, "]")
	if !ok || !closed {
		return ""
	}
	return word
}

// mapCountWanted is for 64 guests of some hundred mappings each, and the Go
// runtime's own.
const mapCountWanted = 65530

func (h *host) mapCount() Check {
	const name = "vm.max_map_count"
	n, err := h.number("/proc/sys/vm/max_map_count")
	switch {
	case err != nil:
		return Check{name, Inconclusive, err.Error(), ""}
	case n < mapCountWanted:
		return Check{name, Note, fmt.Sprintf("%d mappings for each process, below the usual %d", n, mapCountWanted), fmt.Sprintf("sysctl vm.max_map_count=%d", mapCountWanted)}
	}
	return Check{name, OK, fmt.Sprintf("%d mappings for each process", n), ""}
}

// filesWanted: a guest costs its socket, its userfaultfd, a duplicate of that, an
// eventfd, a pidfd and its file.
const filesWanted = 1024

func (h *host) openFiles() Check {
	return h.check("open-files", "/proc/self/limits", func(v string) Check {
		for line := range strings.Lines(v) {
			rest, ok := strings.CutPrefix(line, "Max open files")
			fields := strings.Fields(rest)
			if !ok || len(fields) < 2 {
				continue
			}
			soft, err := strconv.ParseUint(fields[0], 10, 64)
			if fields[0] == "unlimited" || err == nil && soft >= filesWanted {
				return Check{Detail: fields[0] + " descriptors for this process, at about 6 for each guest"}
			}
			return Check{Status: Note, Detail: fields[0] + " descriptors for this process, at about 6 for each guest", Cure: "raise RLIMIT_NOFILE"}
		}
		return Check{Status: Inconclusive, Detail: "no open files in /proc/self/limits"}
	})
}

// KVM's extensions, as KVM_CHECK_EXTENSION numbers them.
const (
	kvmUserMemory = 3
	kvmAsyncPF    = 59
)

func (h *host) kvm() Check {
	switch have, err := h.kvmExtension(kvmUserMemory); {
	case err != nil:
		return Check{"kvm", Lack, err.Error(), "load kvm_intel or kvm_amd and grant access to /dev/kvm, where guests run here; serving itself does not need it"}
	case have == 0:
		return Check{"kvm", Lack, "/dev/kvm is there and has no memory slots", "use a newer kernel"}
	}
	return Check{"kvm", OK, "/dev/kvm can be opened", ""}
}

// asyncFaults: a guest that is told of faults by interrupts may wait for ever for
// one that a userfaultfd holds up.
func (h *host) asyncFaults() Check {
	const name = "kvm-async-pf"
	switch have, err := h.kvmExtension(kvmAsyncPF); {
	case err != nil:
		return Check{name, Inconclusive, err.Error(), ""}
	case have == 0:
		return Check{name, OK, "guests are not offered asynchronous page faults", ""}
	}
	return Check{name, Note, "KVM offers guests asynchronous page faults, which can leave a guest idle for good when its memory is served",
		"leave MSR 0x4b564d02 at 0, and KVM_FEATURE_ASYNC_PF out of the guest's CPUID, or boot it with no-kvmapf"}
}
