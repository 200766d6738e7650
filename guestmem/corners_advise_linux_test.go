//go:build amd64

package guestmem

import (
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

func doLock(at addr.GVA, length uint64, mode LockMode) op {
	return op{kind: opLock, at: at, length: length, data: uint64(mode)}
}

func doUnlock(at addr.GVA, length uint64) op { return op{kind: opUnlock, at: at, length: length} }

func doLockAll(f LockAllFlags) op { return op{kind: opLockAll, data: uint64(f)} }

func doSync(at addr.GVA, length uint64, f SyncFlags) op {
	return op{kind: opSync, at: at, length: length, data: uint64(f)}
}

func doResident(at addr.GVA, length uint64) op { return op{kind: opResident, at: at, length: length} }

// atSpace lets an op be done by another member of the family.
func atSpace(space int, o op) op {
	o.space = space
	return o
}

// kindsOfAreas is a private anonymous area, a hole, a shared one, and a private file.
func kindsOfAreas(p func(int) addr.GVA) []step {
	return []step{
		three(p),
		{doMap(p(5), 3*page, rw, MapShared|MapAnonymous|MapFixed), "ok", "0-3 rw-p, 5-8 rw-s", ""},
		{doMapFile(p(10), 3*page, rw, MapPrivate|MapFixed, 3, 0), "ok", "0-3 rw-p, 5-8 rw-s, 10-13 rw-p", ""},
		{doWrite(0, p(0), 3*page, 1), "ok", "=", ""},
		{doWrite(0, p(5), 3*page, 2), "ok", "=", ""},
		{doWrite(0, p(10), page, 3), "ok", "=", ""},
	}
}

func TestCornersAdvise(t *testing.T) {
	var cases []corner
	add := func(name string, steps func(p func(int) addr.GVA) []step) {
		cases = append(cases, corner{name: name, steps: func(p func(int) addr.GVA) []step { return append(kindsOfAreas(p), steps(p)...) }})
	}
	add("refused", func(p func(int) addr.GVA) []step {
		return []step{
			{doAdvise(p(0), 0, 5), "EINVAL", "=", ""}, // unknown, whatever the length
			{doAdvise(p(0), page, -1), "EINVAL", "=", ""},
			{doAdvise(p(0)+1, 0, AdviceNormal), "EINVAL", "=", ""},
			{doAdvise(p(3), 0, AdviceFree), "ok", "=", ""},
			{doAdvise(p(0), ^uint64(0), AdviceNormal), "EINVAL", "=", ""},
			{doAdvise(p(0), -uint64(p(0)), AdviceDontNeed), "EINVAL", "=", ""},
			{doAdvise(p(3), page, AdviceWillNeed), "ENOMEM", "=", ""},
			{doAdvise(p(0), 4*page, AdviceRandom), "ENOMEM", "=", ""},
		}
	})
	add("an area's own error overrides a hole", func(p func(int) addr.GVA) []step {
		return []step{
			{doAdvise(p(0), 8*page, AdviceFree), "EINVAL", "=", ""},
			{doAdvise(p(0), 8*page, AdviceWipeOnFork), "EINVAL", "=", ""},
			{doFork(0, 1), "ok", "=", ""},
			{atSpace(1, doLoad(1, p(0), 8)), "ok 8", "=", zeros(8)}, // the head was done
			{atSpace(1, doLoad(1, p(5), 8)), "ok 8", "=", ""},
		}
	})
	add("don't fork", func(p func(int) addr.GVA) []step {
		return []step{
			{doAdvise(p(1), page, AdviceDontFork), "ok", "=", ""},
			{doAdvise(p(6), 5*page, AdviceDontFork), "ENOMEM", "=", ""},
			{doFork(0, 1), "ok", "=", ""},
			{doLoad(1, p(1), 8), "SEGV_MAPERR", "0-1 rw-p, 2-3 rw-p, 5-6 rw-s, 11-13 rw-p", ""},
			{doStore(1, p(5), 8, 9), "ok", "=", ""},
			{doLoad(0, p(5), 8), "ok 8", "", string(patternOf(9, 8))},
			{doAdvise(p(0), 3*page, AdviceDoFork), "ok", "", ""},
			{doFork(0, 2), "ok", "", ""},
			{doLoad(2, p(1), 8), "ok 8", "0-3 rw-p, 5-6 rw-s, 11-13 rw-p", ""},
		}
	})
	add("wipe on fork stays so in the child", func(p func(int) addr.GVA) []step {
		return []step{
			{doAdvise(p(1), page, AdviceWipeOnFork), "ok", "=", ""},
			{doFork(0, 1), "ok", "=", ""},
			{doLoad(1, p(1), 8), "ok 8", "=", zeros(8)},
			{doStore(1, p(1), 8, 4), "ok", "=", ""},
			{doFork(1, 2), "ok", "", ""},
			{doLoad(2, p(1), 8), "ok 8", "", zeros(8)},
			{doAdvise(p(1), page, AdviceKeepOnFork), "ok", "", ""},
			{doFork(0, 3), "ok", "", ""},
			{doLoad(3, p(1), 8), "ok 8", "", string(patternOf(1, int(3*page))[page : page+8])},
		}
	})
	add("populate stops", func(p func(int) addr.GVA) []step {
		return []step{
			{doMap(p(20), 4*page, rw, fixedAnon), "ok", "", ""},
			{doProtect(p(22), page, ProtWrite), "ok", "", ""},
			{doAdvise(p(20), 4*page, AdvicePopulateRead), "EINVAL", "=", ""}, // 20 and 21 are done
			{doAdvise(p(20), 5*page, AdvicePopulateWrite), "ENOMEM", "=", ""},
			{doMapFile(p(30), 6*page, r_, MapPrivate|MapFixed, 3, 0), "ok", "", ""},
			{doAdvise(p(30), page, AdvicePopulateWrite), "EINVAL", "=", ""},
			{doAdvise(p(30), 6*page, AdvicePopulateRead), "EFAULT", "=", ""}, // past the end
			{doAdvise(p(3), page, AdvicePopulateRead), "ENOMEM", "=", ""},
			{doAdvise(p(3), 0, AdvicePopulateRead), "ok", "=", ""},
		}
	})
	add("remove", func(p func(int) addr.GVA) []step {
		return []step{
			{doFork(0, 1), "ok", "=", ""},
			{doAdvise(p(0), page, AdviceRemove), "EINVAL", "=", ""},
			{doAdvise(p(10), page, AdviceRemove), "EACCES", "=", ""},
			{doAdvise(p(6), 3*page, AdviceRemove), "ENOMEM", "=", ""},
			{doLoad(1, p(6), 8), "ok 8", "=", zeros(8)}, // for both
			{doStore(1, p(6), 8, 7), "ok", "=", ""},
			{doLoad(0, p(6), 8), "ok 8", "=", string(patternOf(7, 8))},
			{doProtect(p(5), 3*page, r_), "ok", "", ""},
			{doAdvise(p(5), 3*page, AdviceRemove), "ok", "=", ""}, // what may be written matters, not what is
			{doAdvise(p(6), 6*page, AdviceRemove), "EACCES", "=", ""},
			{doLock(p(5), page, LockNow), "ok", "=", ""},
			{doAdvise(p(5), page, AdviceRemove), "EINVAL", "=", ""},
		}
	})
	add("free keeps, page out keeps", func(p func(int) addr.GVA) []step {
		return []step{
			{doAdvise(p(0), 3*page, AdvicePageOut), "ok", "=", ""}, // without swap
			{doAdvise(p(0), 3*page, AdviceFree), "ok", "=", ""},
			{doLoad(0, p(0), 8), "ok 8", "=", string(patternOf(1, 8))},
			{doAdvise(p(10), page, AdviceFree), "EINVAL", "=", ""},
			{doAdvise(p(3), page, AdvicePageOut), "ENOMEM", "=", ""},
		}
	})
	runCorners(t, cases)
}

func TestCornersGuards(t *testing.T) {
	var cases []corner
	add := func(name string, steps func(p func(int) addr.GVA) []step) {
		cases = append(cases, corner{name: name, guards: true, steps: func(p func(int) addr.GVA) []step { return append(kindsOfAreas(p), steps(p)...) }})
	}
	add("every kind", func(p func(int) addr.GVA) []step {
		return []step{
			{doAdvise(p(0), 2*page, AdviceGuardInstall), "ok", "=", ""},
			{doLoad(0, p(0), 8), "SEGV_MAPERR", "=", ""},
			{doRead(0, p(1), 8), "EFAULT", "=", ""},
			{doAdvise(p(0), page, AdvicePopulateRead), "EFAULT", "=", ""},
			{doAdvise(p(0), 2*page, AdviceGuardRemove), "ok", "=", ""},
			{doLoad(0, p(0), 8), "ok 8", "=", zeros(8)},
			{doAdvise(p(5), page, AdviceGuardInstall), "ok", "=", ""},
			{doStore(0, p(5), 8, 3), "SEGV_MAPERR", "=", ""},
			{doAdvise(p(5), page, AdviceGuardRemove), "ok", "=", ""},
			{doLoad(0, p(5), 8), "ok 8", "=", string(patternOf(2, 8))}, // the object kept it
			{doAdvise(p(10), page, AdviceGuardInstall), "ok", "=", ""},
			{doAdvise(p(10), page, AdviceGuardRemove), "ok", "=", ""},
			{doLoad(0, p(10), 8), "ok 8", "=", string(worldFiles[2].data[:8])},
		}
	})
	add("survive", func(p func(int) addr.GVA) []step {
		return []step{
			{doAdvise(p(1), page, AdviceGuardInstall), "ok", "=", ""},
			{doDiscard(p(0), 3*page), "ok", "=", ""},
			{doLoad(0, p(1), 1), "SEGV_MAPERR", "=", ""},
			{doLoad(0, p(0), 8), "ok 8", "=", zeros(8)},
			{doAdvise(p(0), 3*page, AdviceFree), "ok", "=", ""},
			{doLoad(0, p(1), 1), "SEGV_MAPERR", "=", ""},
			{doProtect(p(0), 3*page, r_), "ok", "", ""},
			{doStore(0, p(1), 1, 1), "SEGV_ACCERR", "=", ""}, // permission comes first
			{doProtect(p(0), 3*page, rw), "ok", "", ""},
			{doStore(0, p(1), 1, 1), "SEGV_MAPERR", "=", ""},
			{doFork(0, 1), "ok", "=", ""},
			{doStore(1, p(1), 1, 1), "SEGV_MAPERR", "=", ""},
			{doStore(1, p(2), 1, 1), "ok", "=", ""}, // the child's own tables
			{doStore(1, p(1), 1, 1), "SEGV_MAPERR", "=", ""},
			{atSpace(1, doAdvise(p(1), page, AdviceGuardRemove)), "ok", "=", ""},
			{doLoad(1, p(1), 8), "ok 8", "=", zeros(8)},
			{doLoad(0, p(1), 8), "SEGV_MAPERR", "=", ""}, // its own still
		}
	})
	add("gone with the area", func(p func(int) addr.GVA) []step {
		return []step{
			{doAdvise(p(0), 3*page, AdviceGuardInstall), "ok", "=", ""},
			{doFork(0, 1), "ok", "=", ""},
			{atSpace(1, doMap(p(0), page, rw, fixedAnon)), "ok", "=", ""}, // in tables that are shared
			{doStore(1, p(0), 8, 5), "ok", "=", ""},
			{atSpace(1, doUnmap(p(1), page)), "ok", "", ""},
			{atSpace(1, doMap(p(1), page, rw, fixedAnon)), "ok", "", ""},
			{doStore(1, p(1), 8, 5), "ok", "", ""},
			{doStore(1, p(2), 8, 5), "SEGV_MAPERR", "", ""},
			{doStore(0, p(0), 8, 5), "SEGV_MAPERR", "", ""},
		}
	})
	add("not in a wiped child", func(p func(int) addr.GVA) []step {
		return []step{
			{doAdvise(p(0), 3*page, AdviceWipeOnFork), "ok", "=", ""},
			{doAdvise(p(1), page, AdviceGuardInstall), "ok", "=", ""},
			{doFork(0, 1), "ok", "=", ""},
			{doLoad(1, p(1), 8), "ok 8", "=", zeros(8)},
			{doLoad(0, p(1), 8), "SEGV_MAPERR", "=", ""},
		}
	})
	add("locked areas and holes", func(p func(int) addr.GVA) []step {
		return []step{
			{doAdvise(p(2), 4*page, AdviceGuardInstall), "ENOMEM", "=", ""},
			{doLoad(0, p(2), 1), "SEGV_MAPERR", "=", ""},
			{doLoad(0, p(5), 1), "SEGV_MAPERR", "=", ""},
			{doLock(p(0), 2*page, LockNow), "ok", "=", ""},
			{doAdvise(p(0), page, AdviceGuardInstall), "EINVAL", "=", ""},
			{doAdvise(p(0), page, AdviceGuardRemove), "ok", "=", ""},
			{doLock(p(2), page, LockNow), "ENOMEM", "=", ""}, // locked, and cannot be had
			{doAdvise(p(2), page, AdviceDontNeed), "EINVAL", "=", ""},
			{doAdvise(p(2), page, AdviceGuardRemove), "ok", "=", ""},
		}
	})
	runCorners(t, cases)
}

func TestCornersLock(t *testing.T) {
	if helperMaxLocked() != 8<<20 {
		t.Skip("RLIMIT_MEMLOCK is not 8 MiB: the cases count on it (ulimit -l 8192)")
	}
	var cases []corner
	add := func(name string, steps func(p func(int) addr.GVA) []step) {
		cases = append(cases, corner{name: name, steps: func(p func(int) addr.GVA) []step { return append(kindsOfAreas(p), steps(p)...) }})
	}
	add("refused", func(p func(int) addr.GVA) []step {
		return []step{
			{doLock(p(0), page, 2), "EINVAL", "=", ""},
			{doLock(p(3), page, LockNow), "ENOMEM", "=", ""},
			{doLock(p(3), 0, LockNow), "ok", "=", ""},
			{doLock(p(0), ^uint64(0), LockNow), "ok", "=", ""}, // rounds up to nothing
			{doLock(p(0), 1<<40, LockNow), "ENOMEM", "=", ""},
			{doAdvise(p(0), page, AdviceDontNeed), "ok", "=", ""}, // nothing of that locked it
			{doUnlock(p(3), page), "ENOMEM", "=", ""},
			{doUnlock(p(2), 2*page), "ENOMEM", "=", ""},
			{doLockAll(8), "EINVAL", "=", ""},
			{doLockAll(LockAllOnFault), "EINVAL", "=", ""},
		}
	})
	add("advice", func(p func(int) addr.GVA) []step {
		return []step{
			{doLock(p(1)+100, 1, LockOnFault), "ok", "=", ""}, // the page that it touches
			{doAdvise(p(0), 3*page, AdviceDontNeed), "EINVAL", "=", ""},
			{doLoad(0, p(0), 8), "ok 8", "=", zeros(8)}, // the head was done
			{doAdvise(p(1), page, AdviceCold), "EINVAL", "=", ""},
			{doAdvise(p(1), page, AdvicePageOut), "EINVAL", "=", ""},
			{doAdvise(p(1), page, AdviceFree), "EINVAL", "=", ""},
			{doAdvise(p(1), page, AdviceDontNeedLocked), "ok", "=", ""},
			{doSync(p(0), 3*page, SyncInvalidate), "EBUSY", "=", ""},
			{doSync(p(0), page, SyncInvalidate), "ok", "=", ""},
			{doFork(0, 1), "ok", "=", ""},
			{atSpace(1, doAdvise(p(0), 3*page, AdviceDontNeed)), "ok", "=", ""}, // not inherited
			{doUnlock(p(1), 1), "ok", "=", ""},
			{doAdvise(p(0), 3*page, AdviceDontNeed), "ok", "=", ""},
		}
	})
	add("populates", func(p func(int) addr.GVA) []step {
		return []step{
			{doMap(p(20), 3*page, rw, fixedAnon|MapLocked), "ok", "", ""},
			{doMap(p(30), 3*page, r_, fixedAnon), "ok", "", ""},
			{doLock(p(30), 3*page, LockNow), "ok", "=", ""},
			{doProtect(p(31), page, rw), "ok", "", ""},
			{doMap(p(40), 2*page, ProtNone, fixedAnon), "ok", "", ""},
			{doLock(p(40), 2*page, LockNow), "ENOMEM", "=", ""},
			{doAdvise(p(40), page, AdviceDontNeed), "EINVAL", "=", ""}, // but it is locked
			{doMapFile(p(50), 6*page, r_, MapPrivate|MapFixed, 3, 0), "ok", "", ""},
			{doLock(p(50), 6*page, LockNow), "ENOMEM", "=", ""},
		}
	})
	add("future", func(p func(int) addr.GVA) []step {
		return []step{
			{doLockAll(LockAllFuture), "ok", "=", ""},
			{doMap(p(20), 3*page, rw, fixedAnon), "ok", "", ""},
			{doAdvise(p(20), page, AdviceDontNeed), "EINVAL", "=", ""},
			{doMap(p(100), 9<<20, rw, fixedAnon), "EAGAIN", "=", ""},
			{doMap(p(100), 9<<20, rw, MapAnonymous|MapFixed), "EAGAIN", "=", ""}, // before the type
			{doMap(p(20), page, rw, anon|MapFixedNoReplace|MapLocked), "EEXIST", "=", ""},
			{doMap(p(20), 1<<20, rw, fixedAnon), "ok", "", ""},
			{doLockAll(LockAllFuture | LockAllOnFault), "ok", "=", ""},
			{doMap(p(400), 3*page, rw, fixedAnon), "ok", "", ""},
			{doLockAll(0), "ok", "=", ""},
			{doAdvise(p(20), page, AdviceDontNeed), "ok", "=", ""},
			{doMap(p(1000), 9<<20, rw, fixedAnon), "ok", "", ""},
			{doLock(p(1000), 9<<20, LockNow), "ENOMEM", "=", ""},
			{doLock(p(1000), 5<<20, LockOnFault), "ok", "=", ""},
			{doLock(p(1000), 8<<20, LockOnFault), "ok", "=", ""}, // what was locked counts once
			{doLock(p(1000), 8<<20+1, LockOnFault), "ENOMEM", "=", ""},
			{doRemap(p(1000), 9<<20, 10<<20, 0, 0), "EFAULT", "=", ""},
		}
	})
	runCorners(t, cases)
}

func TestCornersSyncAndResident(t *testing.T) {
	runCorners(t, []corner{{name: "both", steps: func(p func(int) addr.GVA) []step {
		return append(kindsOfAreas(p), []step{
			{doSync(p(0), page, SyncAsync|SyncWait), "EINVAL", "=", ""},
			{doSync(p(0), page, 8), "EINVAL", "=", ""},
			{doSync(p(0)+1, page, 0), "EINVAL", "=", ""},
			{doSync(p(3), 0, SyncWait), "ok", "=", ""},
			{doSync(p(3), ^uint64(0), SyncWait), "ok", "=", ""}, // rounds up to nothing
			{doSync(p(0), -uint64(p(0))-page, SyncWait), "ENOMEM", "=", ""},
			{doSync(p(0), 3*page, 0), "ok", "=", ""},
			{doSync(p(0), 8*page, SyncWait), "ENOMEM", "=", ""},
			{doSync(p(3), 5*page, SyncAsync), "ENOMEM", "=", ""},
			{doSync(p(7), 2*page, SyncWait), "ENOMEM", "=", ""},
			{doResident(p(0)+1, page), "EINVAL", "=", ""},
			{doResident(p(3), 0), "ok", "=", ""},
			{doResident(p(0), 3*page), "ok", "=", ""},
			{doResident(p(0), 4*page), "ENOMEM", "=", ""},
			{doResident(p(5), 3*page), "ok", "=", ""},
			{doResident(p(0), 1<<63), "ENOMEM", "=", ""},
		}...)
	}}})
}
