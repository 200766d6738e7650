//go:build linux && amd64

package kernel

import (
	"golang.org/x/sys/unix"
)

// traits are what a process can be told of itself by prctl and personality, and be asked
// for again. A child has its parent's, but for who is a subreaper.
type traits struct {
	undumpable, noNewPrivs, keepCaps, noTHP, subreaper bool
	timerSlack, personality                            uint64 // slack: 0 is the default
}

const (
	defaultTimerSlack = 50_000 // ns
	securebits        = 0x10   // SECBIT_KEEP_CAPS
)

// forked are the traits of a child.
func (a traits) forked() traits {
	a.subreaper = false
	return a
}

// execed are those of a new program.
func (a traits) execed() traits {
	a.undumpable, a.keepCaps = false, false
	return a
}

// flagTrait finds what a pair of prctl's calls is about.
func (p *Process) flagTraitLocked(option uint64) *bool {
	switch option {
	case unix.PR_SET_NO_NEW_PRIVS, unix.PR_GET_NO_NEW_PRIVS:
		return &p.traits.noNewPrivs
	case unix.PR_SET_KEEPCAPS, unix.PR_GET_KEEPCAPS:
		return &p.traits.keepCaps
	case unix.PR_SET_THP_DISABLE, unix.PR_GET_THP_DISABLE:
		return &p.traits.noTHP
	}
	return nil
}

func asNumber(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// prctlTrait sets a trait, or tells it. EINVAL for what is none.
func (t *Task) prctlTrait(a args) (uint64, error) {
	if a[0] == unix.PR_GET_CHILD_SUBREAPER || a[0] == unix.PR_GET_PDEATHSIG {
		t.k.mu.Lock()
		v := uint32(asNumber(t.proc.traits.subreaper))
		if a[0] == unix.PR_GET_PDEATHSIG {
			v = uint32(t.deathSignal)
		}
		t.k.mu.Unlock()
		return 0, put(t, a[1], v)
	}
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	p := t.proc
	switch a[0] {
	case unix.PR_GET_DUMPABLE:
		return asNumber(!p.traits.undumpable), nil
	case unix.PR_SET_DUMPABLE:
		if a[1] > 1 {
			return 0, unix.EINVAL
		}
		p.traits.undumpable = a[1] == 0
	case unix.PR_SET_NO_NEW_PRIVS:
		if a[1] != 1 || a[2]|a[3]|a[4] != 0 {
			return 0, unix.EINVAL
		}
		p.traits.noNewPrivs = true
	case unix.PR_GET_NO_NEW_PRIVS, unix.PR_GET_THP_DISABLE:
		if a[1]|a[2]|a[3]|a[4] != 0 {
			return 0, unix.EINVAL
		}
		return asNumber(*p.flagTraitLocked(a[0])), nil
	case unix.PR_GET_KEEPCAPS:
		return asNumber(p.traits.keepCaps), nil
	case unix.PR_SET_KEEPCAPS:
		if a[1] > 1 {
			return 0, unix.EINVAL
		}
		p.traits.keepCaps = a[1] == 1
	case unix.PR_SET_THP_DISABLE:
		if a[2]|a[3]|a[4] != 0 {
			return 0, unix.EINVAL
		}
		p.traits.noTHP = a[1] != 0
	case unix.PR_SET_CHILD_SUBREAPER:
		p.traits.subreaper = a[1] != 0
	case unix.PR_SET_PDEATHSIG:
		if a[1] > maxSignal {
			return 0, unix.EINVAL
		}
		t.deathSignal = int(a[1])
	case unix.PR_GET_TIMERSLACK:
		if p.traits.timerSlack == 0 {
			return defaultTimerSlack, nil
		}
		return p.traits.timerSlack, nil
	case unix.PR_SET_TIMERSLACK:
		if p.traits.timerSlack = a[1]; int64(a[1]) < 0 {
			p.traits.timerSlack = 0
		}
	case unix.PR_GET_SECCOMP: // 0: there is none
	case unix.PR_GET_SECUREBITS:
		return securebits * asNumber(p.traits.keepCaps), nil
	case unix.PR_CAPBSET_READ:
		const lastCapability = 40
		if a[1] > lastCapability {
			return 0, unix.EINVAL
		}
		return 0, nil // none can be had
	default:
		return 0, unix.EINVAL
	}
	return 0, nil
}

// sysPersonality notes what a program asks for, and changes nothing.
func sysPersonality(t *Task, a args) (uint64, error) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	was := t.proc.traits.personality
	if want := uint64(uint32(a[0])); want != 0xffffffff {
		t.proc.traits.personality = want
	}
	return was, nil
}
