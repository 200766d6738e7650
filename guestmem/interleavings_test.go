package guestmem

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

// interleavings are the races that the rules are made against, and the tests in
// which workers are parked so that each takes place. The tests of one package
// cannot be called from another, but they can be missed.
var interleavings = []struct {
	what  string
	dir   string
	tests []string
}{
	{"1: a copier walks to a writable page before an edit, and stores after the change has returned", ".",
		[]string{"TestR1ChangeWaitsForWriters", "TestR1SecondSweepFindsLateInstalls", "TestR1WhoWalkedToALateInstallIsWaitedFor", "TestR1DiscardKeepsWhatWasStoredAfter"}},
	{"1, of the reclaimer", "../internal/epoch", []string{"TestR1BarrierWaitsForSectionsOfItsSpaceThatHadBegun"}},
	{"2: an area is looked up in a tree that is being replaced, and the sequence loaded after", "../vmarea",
		[]string{"TestR2SequenceIsLoadedFirst", "TestR2UnlockedOnlyAfterPublish", "TestR2WholeMarkIsLoadedFirst"}},
	{"2, on the slow path", ".", []string{"TestR2FaultWaitsForTheChangeOfItsAreaOnly", "TestR2NoPathIsOwnedBesideAFork"}},
	{"3: two trees, one area object", "../vmarea", []string{"TestR2ForeignAreaIsRefused"}},
	{"4: a moved table keeps write permission", ".", []string{"TestR6MovedTableDoesNotTrustTheTablesBelow"}},
	{"4, in the table", "../pagetable", []string{"TestR6MoveKeepsWriteWhereExclusive", "TestR6MoveKeepsNoWriteAbove"}},
	{"5: a count dropped at once", ".", []string{"TestR4DropIsRetired", "TestR4TableDropIsRetired"}},
	{"5, of the reclaimer", "../internal/epoch", []string{"TestR4RetiredWaitsForEveryOpenSection"}},
	{"6: an install lost to a path copy", ".", []string{"TestR6NoInstallIsLostToAPathCopy"}},
	{"7: a store through the alias while a snapshot is open, and a load of what is still to be restored", ".",
		[]string{"TestR15StoreDuringSnapshotCopiesFirst", "TestR15WindowOpensWhileAStoreAsks", "TestR15WindowWaitsForWhoPopulates", "TestR15LazyRegionFetches"}},
	{"8: MADV_DONTNEED of a private mapping", ".", []string{"TestR8DiscardInClone", "TestR8DiscardInCloneOfTemplate"}},
	{"9: pin against fork, and against what takes away", ".",
		[]string{"TestR7ForkSeesPinsTakenBesideIt", "TestR7PinReadsTheEntryAgain", "TestR7FailedForkLeavesThePin"}},
	{"10: a barrier inside a section", ".", []string{"TestR4RefillingNeverWaitsForItself"}},
	{"10, of the reclaimer", "../internal/epoch", []string{"TestR4SectionsDoNotNestOrBlock"}},
	{"11: pages are taken out of an object that several spaces map", ".",
		[]string{"TestR1TruncateHidesPagesFirst", "TestR1RemoveWaitsForEverySpace"}},
	{"12: writers that are the kernel, or devices", ".",
		[]string{"TestR15KernelWritersAreTrapped", "TestR7HeldForWritingIsCopiedAtTheInstant", "TestR7WindowsWhileASliceGoesLive", "TestR10HeldPagesAreNotArmed"}},
	{"13: a window opens while a handler is about to disarm a page", ".", []string{"TestR15WindowWaitsForClaims"}},
	{"13, of a fault server's installs", "../uffd/pager", []string{"TestR15ArmingWaitsForInstalls"}},
	{"14: an access that had passed the door before a window opens", ".",
		[]string{"TestR15WindowIsACut", "TestR15WindowWaitsForAccessesThatHadPassed", "TestR15EveryAccessPassesTheDoor", "TestR15TableEditsPassTheDoor"}},
	{"15: fork copies the root beside a path being moved", ".", []string{"TestR6ForkWaitsForThePathBeingMoved"}},
	{"16: two trees mark one area object", "../vmarea", []string{"TestR2ChangeMarksOnlyItsOwn"}},
}

func TestInterleavingsAreStaged(t *testing.T) {
	sources := make(map[string]string)
	for _, i := range interleavings {
		if sources[i.dir] == "" {
			sources[i.dir] = testSources(t, i.dir)
		}
		for _, name := range i.tests {
			if !strings.Contains(sources[i.dir], "\nfunc "+name+"(t *testing.T) {") {
				t.Errorf("interleaving %s: there is no %s in %s", i.what, name, i.dir)
			}
		}
	}
}

// testSources returns the test files of a directory, one after the other.
func testSources(t *testing.T, dir string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	mustDo(t, err)
	var all strings.Builder
	for _, name := range names {
		text, err := os.ReadFile(name)
		mustDo(t, err)
		all.Write(text)
	}
	return all.String()
}

// lateFault is a fault that has passed StartRead and is then descheduled. Its slot
// comes after all that are lent: a barrier that waits for it has looked at those.
type lateFault struct {
	h    *Handle
	a    Accessor
	area *vmarea.Area
	gva  addr.GVA
}

func parkFault(t *testing.T, as *AddressSpace, gva addr.GVA) *lateFault {
	t.Helper()
	h := as.mem.NewHandle()
	f := &lateFault{h: h, a: as.With(h), gva: gva}
	f.a.h.Hold()
	mustDo(t, as.mem.refill(f.a.h))
	f.a.h.Return(as.id)
	var status vmarea.Status
	if f.area, status = as.tree.StartRead(gva); status != vmarea.Found {
		t.Fatal(status)
	}
	return f
}

// install goes on with the fault.
func (f *lateFault) install(t *testing.T) {
	t.Helper()
	if o := f.a.as.faultIn(f.area, f.a.h.Local().(*cow.Cache), f.a, &attempt{gva: f.gva, access: Write}); o != resolved {
		t.Errorf("the late install: outcome %d", o)
	}
}

func (f *lateFault) leave() {
	f.a.as.tree.EndRead(f.area)
	f.a.h.Exit()
	f.h.Close()
}

// What only the second sweep has found, somebody may have walked to since:
//
//	fault F            unmap                    copier K
//	StartRead passes
//	                   marks, sweeps: nothing
//	                   waits for F, not for K
//	installs a page
//	                                            enters, walks to it
//	leaves
//	                   sweeps: finds it
//	                   waits again
//	                                            stores, leaves
func TestR1WhoWalkedToALateInstallIsWaitedFor(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 4*page, rw)
	mustWrite(t, as, gva+page, []byte("makes the leaf table"))
	f := parkFault(t, as, gva)
	unmap := inBackground(func() {
		if err := as.Unmap(gva, page); err != nil {
			t.Error(err)
		}
	})
	if !parked(unmap) {
		t.Error("unmap did not wait for a fault that had begun")
	}
	f.install(t)
	walked, goOn := make(chan struct{}), make(chan struct{})
	copier := inBackground(func() {
		k := parkAt(t, as, gva, Write)
		close(walked)
		<-goOn
		copy(k.bytes(), "K was here")
		k.leave()
	})
	mustEnd(t, "K's walk", walked)
	f.leave()
	if !parked(unmap) {
		t.Error("unmap returned beside a copier that had walked to a page installed late")
	}
	close(goOn)
	mustEnd(t, "K", copier)
	mustEnd(t, "unmap", unmap)
	mustCheck(t, m)
}

// A discard takes place once for each page. A page that is seen empty beside it
// is the new one, and what is stored there stays:
//
//	fault F            discard                  somebody
//	StartRead passes
//	                   sweeps
//	                   waits for F
//	installs a page
//	                                            loads: empty
//	                                            stores
//	leaves
//	                   returns
//	                                            loads what was stored
func TestR1DiscardKeepsWhatWasStoredAfter(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 4*page, rw)
	mustWrite(t, as, gva, []byte("before"))
	f := parkFault(t, as, gva)
	discard := inBackground(func() {
		if err := as.Discard(gva, page); err != nil {
			t.Error(err)
		}
	})
	if !parked(discard) {
		t.Error("discard did not wait for a fault that had begun")
	}
	f.install(t)
	mustEnd(t, "an access to the page that was installed", inBackground(func() {
		mustSee(t, as, gva, make([]byte, 6))
		mustWrite(t, as, gva, []byte("after!"))
	}))
	f.leave()
	mustEnd(t, "discard", discard)
	mustSee(t, as, gva, []byte("after!"))
	mustCheck(t, m)
}
