package guestmem

import (
	counter "go.uber.org/atomic"

	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

// MemoryStats are figures of a Memory, in frames of 4 KiB unless it says
// otherwise. They are exact when no call is in progress.
type MemoryStats struct {
	FramesTotal uint64 `json:"frames_total"` // that guests can use
	FramesFree  uint64 `json:"frames_free"`  // backed by the host or not
	FramesInUse uint64 `json:"frames_in_use"`
	Backed      uint64 `json:"frames_backed"` // by the host, free or in use
	Tables      uint64 `json:"tables"`        // part of FramesInUse
	ObjectPages uint64 `json:"object_pages"`  // part of FramesInUse
	Supervisor  uint64 `json:"supervisor"`    // the platform's; neither free nor in use
	Quarantined uint64 `json:"quarantined"`   // tables kept by the view; neither free nor in use
	Spaces      int    `json:"address_spaces"`
	Snapshots   int    `json:"space_snapshots"` // of address spaces

	// HugeLeaves is how many leaves of 2 MiB page tables have now; a relative's
	// that are the same table count once. Their frames are part of FramesInUse.
	HugeLeaves uint64 `json:"huge_leaves"`

	// What became of faults so far.
	Zeroed uint64 `json:"zeroed"` // pages that appeared empty
	Filled uint64 `json:"filled"` // pages of objects installed
	Copied uint64 `json:"copied"` // copied on write, 4 KiB each
	Reused uint64 `json:"reused"` // made writable in place
	Raced  uint64 `json:"raced"`  // somebody else was faster
	Forks  uint64 `json:"forks"`

	MonitorFaults  uint64 `json:"monitor_faults"`  // that waited for a monitor so far
	MonitorWaiting uint64 `json:"monitor_waiting"` // faults and changes that wait for one now

	// What became of leaves of 2 MiB so far.
	HugeInstalled uint64 `json:"huge_installed"` // at a fault; 512 of Zeroed each
	HugeCollapsed uint64 `json:"huge_collapsed"` // by AdviceCollapse
	HugeSplit     uint64 `json:"huge_split"`     // at a fault or a pin
	HugeReused    uint64 `json:"huge_reused"`    // made writable in place
	HugeFellBack  uint64 `json:"huge_fell_back"` // faults that found no block of 2 MiB
}

// hugeCounters are counters of the slow paths of 2 MiB leaves.
type hugeCounters struct {
	installed, collapsed, split, reused, fellBack counter.Uint64
}

// Installed returns how many pages faults have installed or copied.
func (s MemoryStats) Installed() uint64 { return s.Zeroed + s.Filled + s.Copied }

// Stats returns the figures of the moment. It reclaims what it can first, so
// that FramesInUse has nothing that is merely waiting for that.
func (m *Memory) Stats() MemoryStats {
	m.domain.FlushAll()
	m.emptyCaches()
	if m.pool == nil {
		return MemoryStats{}
	}
	populated, unpopulated := m.pool.FreeFrames()
	s := MemoryStats{
		FramesTotal: m.arena.Len() - 1,
		FramesFree:  populated + unpopulated,
		Tables:      m.tables.Load(),
		ObjectPages: m.objectPages.Load(),
		Supervisor:  m.supervisorFrames.Load(),
		Quarantined: m.quarantined.Load(),
		Forks:       m.forks.Load(),

		MonitorFaults:  m.monitorFaults.Load(),
		MonitorWaiting: uint64(m.monitorWaits.Load()),

		HugeInstalled: m.huge.installed.Load(),
		HugeCollapsed: m.huge.collapsed.Load(),
		HugeSplit:     m.huge.split.Load(),
		HugeReused:    m.huge.reused.Load(),
		HugeFellBack:  m.huge.fellBack.Load(),
	}
	m.pool.EachBlock(func(_ addr.PFN, leaves uint32) { s.HugeLeaves += uint64(leaves) })
	s.FramesInUse = s.FramesTotal - s.FramesFree - s.Supervisor - s.Quarantined
	s.Backed = s.FramesTotal - unpopulated
	m.mu.Lock()
	for _, as := range m.spaces {
		if as.frozen {
			s.Snapshots++
		} else {
			s.Spaces++
		}
	}
	m.mu.Unlock()
	m.domain.EachLocal(func(local any) {
		c := &local.(*cow.Cache).Count
		s.Zeroed += c.Zeroed.Load()
		s.Filled += c.Filled.Load()
		s.Copied += c.Copied.Load()
		s.Reused += c.Reused.Load()
		s.Raced += c.Raced.Load()
	})
	return s
}

// SpaceStats are figures of an address space.
type SpaceStats struct {
	Areas       int    `json:"areas"`
	MappedBytes uint64 `json:"mapped_bytes"`
	// PinnedBytes is what counts against SpaceOptions.MaxPinned.
	PinnedBytes uint64 `json:"pinned_bytes"`
}

// Stats returns the figures of the moment. It waits for no change. O(areas).
func (as *AddressSpace) Stats() SpaceStats {
	snap := as.tree.Snapshot()
	s := SpaceStats{Areas: snap.Len()}
	snap.Ascend(addr.GVA(0), func(a *vmarea.Area) bool {
		s.MappedBytes += a.Len()
		return true
	})
	as.pins.mu.Lock()
	s.PinnedBytes = as.pins.pages * addr.PageSize
	as.pins.mu.Unlock()
	return s
}
