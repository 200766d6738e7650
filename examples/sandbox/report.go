//go:build linux && amd64

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/guestmm/guestmm/examples/sandbox/internal/kernel"
	"github.com/guestmm/guestmm/guestmem"
)

// report is what -json writes.
type report struct {
	ExitStatus     int     `json:"exit_status"`
	WallMS         float64 `json:"wall_ms"`
	Processes      uint64  `json:"processes"`
	ProcessesMax   uint64  `json:"processes_max"` // at once, zombies too
	Threads        uint64  `json:"threads"`       // the processes' first ones too
	Syscalls       uint64  `json:"syscalls"`
	Faults         uint64  `json:"faults"`
	ReadFaults     uint64  `json:"faults_read"`
	WriteFaults    uint64  `json:"faults_write"`
	ExecFaults     uint64  `json:"faults_execute"`
	FaultsRefused  uint64  `json:"faults_refused"`
	PagesInstalled uint64  `json:"pages_installed"`
	PagesZeroed    uint64  `json:"pages_zeroed"`
	PagesShared    uint64  `json:"pages_shared"` // of files: installed without a copy of their own
	PagesCopied    uint64  `json:"pages_copied"`
	PagesReused    uint64  `json:"pages_reused"` // made writable in place
	Forks          uint64  `json:"forks"`
	ForkMedian     *int64  `json:"fork_ns_median"` // null without forks
	ForkMax        *int64  `json:"fork_ns_max"`
	MostAreas      uint64  `json:"areas_max"`
	MostMapped     uint64  `json:"mapped_bytes_max"`
	OutOfMemory    uint64  `json:"out_of_memory_kills"`
	FramesLeaked   uint64  `json:"frames_leaked"`

	// UnknownCalls is how often each system call that there is not was answered with ENOSYS.
	UnknownCalls map[string]int `json:"unknown_calls,omitempty"`
}

// newReport puts the kernel's and the memory's figures together. Mem is from
// after the last address space was closed, so that what is in use is leaked.
func newReport(status int, wall time.Duration, k kernel.Report, mem guestmem.MemoryStats) *report {
	r := &report{
		ExitStatus: status, WallMS: float64(wall.Microseconds()) / 1000,
		Processes: k.Processes, ProcessesMax: k.ProcessesMax, Threads: k.Threads, Syscalls: k.Syscalls,
		Faults: k.Faults(), ReadFaults: k.ReadFaults, WriteFaults: k.WriteFaults, ExecFaults: k.ExecFaults,
		FaultsRefused: k.FaultsRefused, OutOfMemory: k.OutOfMemory,
		PagesInstalled: mem.Installed(), PagesZeroed: mem.Zeroed, PagesShared: mem.Filled,
		PagesCopied: mem.Copied, PagesReused: mem.Reused,
		Forks: k.Forks, MostAreas: k.Spaces.MostAreas, MostMapped: k.Spaces.MostMapped,
		FramesLeaked: mem.FramesInUse, UnknownCalls: k.UnknownCalls,
	}
	if k.Forks > 0 {
		median, most := k.ForkMedian.Nanoseconds(), k.ForkMax.Nanoseconds()
		r.ForkMedian, r.ForkMax = &median, &most
	}
	return r
}

// write prints what the options ask for.
func (r *report) write(o *options, stdout, stderr io.Writer) error {
	if o.stats {
		if err := r.table(stderr); err != nil {
			return failed(err)
		}
	}
	if o.json == "" {
		return nil
	}
	line, err := json.Marshal(r)
	if err != nil {
		return failed(err)
	}
	line = append(line, '\n')
	if o.json == "-" {
		_, err = stdout.Write(line)
	} else {
		err = os.WriteFile(o.json, line, 0o666)
	}
	if err != nil {
		return failed(fmt.Errorf("-json: %w", err))
	}
	return nil
}

// unknown names the calls that there are not.
func (r *report) unknown() string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(r.UnknownCalls)) {
		list = append(list, fmt.Sprintf("%s %d", name, r.UnknownCalls[name]))
	}
	if len(list) == 0 {
		return ""
	}
	return "not there: " + strings.Join(list, ", ")
}

func (r *report) table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	forks := "-\t"
	if r.ForkMedian != nil {
		forks = fmt.Sprintf("%d\tmedian %v, longest %v", r.Forks, time.Duration(*r.ForkMedian), time.Duration(*r.ForkMax))
	}
	for _, row := range []string{
		fmt.Sprintf("exit status\t%d\tafter %.1f ms", r.ExitStatus, r.WallMS),
		fmt.Sprintf("processes\t%d\t", r.Processes),
		fmt.Sprintf("system calls\t%d\t%s", r.Syscalls, r.unknown()),
		fmt.Sprintf("areas\t%d\tmost in one address space; %d KiB mapped", r.MostAreas, r.MostMapped>>10),
		fmt.Sprintf("faults\t%d\tread %d, write %d, execute %d, refused %d", r.Faults, r.ReadFaults, r.WriteFaults, r.ExecFaults, r.FaultsRefused),
		fmt.Sprintf("pages installed\t%d\tzeroed %d, shared from files %d, copied %d", r.PagesInstalled, r.PagesZeroed, r.PagesShared, r.PagesCopied),
		fmt.Sprintf("pages reused\t%d\tmade writable in place", r.PagesReused),
		"forks\t" + forks,
		fmt.Sprintf("frames leaked\t%d\t", r.FramesLeaked),
	} {
		if _, err := fmt.Fprintln(t, row); err != nil {
			return err
		}
	}
	return t.Flush()
}
