//go:build linux && amd64

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/guestmm/guestmm/examples/vmm/internal/machine"
)

// maxPrivateKiB is the most that an idle clone may cost.
const maxPrivateKiB = 1024

// result is what a run of the built-in guest has found.
type result struct {
	mu sync.Mutex

	OK              bool    `json:"ok"`
	Error           string  `json:"error,omitempty"`
	MemoryBytes     uint64  `json:"memory_bytes"`
	Seed            uint64  `json:"seed"`
	PagesChecked    uint64  `json:"pages_checked"`
	SelfcheckErrors uint64  `json:"selfcheck_errors"`
	ModelErrors     uint64  `json:"model_errors"`
	Harvests        uint64  `json:"harvests"`
	DirtyPages      uint64  `json:"dirty_pages"`
	DirtyMissed     uint64  `json:"dirty_missed"`
	DirtySpurious   uint64  `json:"dirty_spurious"`
	Clones          int     `json:"clones"`
	FirstExit       float64 `json:"clone_first_exit_us_median"`
	RawFirstExit    float64 `json:"raw_clone_first_exit_us_median"`
	IdleClones      int     `json:"idle_clones"`
	PrivateKiB      float64 `json:"private_kib_per_clone"`
	Steps           []row   `json:"steps"`

	Snapshots []snapshotResult `json:"snapshots"`
	Tracker   string           `json:"tracker,omitempty"` // of increments
	Files     []fileResult     `json:"files,omitempty"`
	Lazy      *lazyResult      `json:"lazy_restore,omitempty"` // of LazyRuns: the last one, and all faults
	LazyRuns  []lazyResult     `json:"lazy_restores,omitempty"`

	Notes []string `json:"notes,omitempty"`

	wantClones   int
	wantsHarvest bool
}

// fileResult is a snapshot file that was written.
type fileResult struct {
	Path   string  `json:"path"`
	Pause  float64 `json:"pause_us"`
	Data   uint64  `json:"data_pages"`
	Stored uint64  `json:"stored_bytes"`
}

func newResult(o *options) *result {
	r := &result{MemoryBytes: o.memory, Seed: o.seed, wantClones: o.clones, Steps: []row{}, Snapshots: []snapshotResult{}}
	if o.snapshot != "" {
		r.wantClones = 0
	}
	r.wantsHarvest = o.snapshot == "" && o.restore == ""
	return r
}

func (r *result) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// restored notes whose guest it is.
func (r *result) restored(s *machine.Saved) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.MemoryBytes = s.MemoryBytes()
}

func (r *result) tally(t machine.Tally) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Harvests += t.Harvests
	r.DirtyPages += t.Dirty
	if t.Missed > 0 && r.DirtyMissed == 0 {
		r.Notes = append(r.Notes, "the first page that a harvest missed: "+t.First)
	}
	r.DirtyMissed += t.Missed
	r.DirtySpurious += t.Spurious
}

func (r *result) selfChecked(s machine.SelfCheck) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.PagesChecked += s.Checked
	if s.Errors > 0 && r.SelfcheckErrors == 0 {
		r.Notes = append(r.Notes, "the guest's first error: "+s.First)
	}
	r.SelfcheckErrors += s.Errors
}

// wrong counts what the VMM itself found wrong with the guest.
func (r *result) wrong(n uint64, what string) {
	if n > 0 {
		r.note("%d %s", n, what)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ModelErrors += n
	}
}

// judge sets OK. Times are told and not judged: they depend on what else runs.
func (r *result) judge() {
	r.OK = r.verdict() == ""
}

// verdict says what is wrong, or nothing.
func (r *result) verdict() string {
	var bad []string
	for _, x := range []struct {
		is   bool
		text string
	}{
		{r.Error != "", "it ended early"},
		{r.SelfcheckErrors > 0, fmt.Sprintf("the guest found %d errors", r.SelfcheckErrors)},
		{r.ModelErrors > 0, fmt.Sprintf("%d pages are not what the guest says it wrote", r.ModelErrors)},
		{r.DirtyMissed > 0, fmt.Sprintf("harvests missed %d pages", r.DirtyMissed)},
		{r.Error == "" && r.Clones != r.wantClones, fmt.Sprintf("%d of %d clones ran", r.Clones, r.wantClones)},
		{r.Error == "" && (r.PagesChecked == 0 || r.wantsHarvest && r.DirtyPages == 0), "nothing was checked"},
		{r.PrivateKiB > maxPrivateKiB, fmt.Sprintf("an idle clone costs %.0f KiB, more than %d", r.PrivateKiB, maxPrivateKiB)},
	} {
		if x.is {
			bad = append(bad, x.text)
		}
	}
	return strings.Join(bad, "; ")
}

// print writes the table.
func (r *result) print(w io.Writer) {
	if len(r.Steps) > 0 {
		fmt.Fprintf(w, "%-44s %12s %12s %7s  %s\n", "step", "guestmm µs", "ioctls µs", "ratio", "spread (middle half)")
		for _, s := range r.Steps {
			fmt.Fprintf(w, "%-44s %12.1f %12.1f %7.2f  %.1f-%.1f, %.1f-%.1f\n", s.Name, s.Ours.Median, s.Raw.Median, s.ratio(),
				s.Ours.Low, s.Ours.High, s.Raw.Low, s.Raw.High)
		}
		fmt.Fprintln(w)
	}
	r.printLive(w)
	if r.Error == "" || r.PagesChecked > 0 {
		fmt.Fprintf(w, "pages that the guests checked    %d, of which wrong: %d\n", r.PagesChecked, r.SelfcheckErrors+r.ModelErrors)
	}
	if r.Harvests > 0 {
		fmt.Fprintf(w, "dirty pages in %5d harvests    %d, missed: %d, spurious: %d\n", r.Harvests, r.DirtyPages, r.DirtyMissed, r.DirtySpurious)
	}
	if r.Clones > 0 {
		fmt.Fprintf(w, "clones at once                   %d\n", r.Clones)
	}
	if r.IdleClones > 0 {
		fmt.Fprintf(w, "private memory of an idle clone  %.0f KiB (mean of %d, guest of %d MiB)\n", r.PrivateKiB, r.IdleClones, r.MemoryBytes>>20)
	}
	for _, n := range r.Notes {
		fmt.Fprintln(w, "note:", n)
	}
	if r.OK {
		fmt.Fprintln(w, "ok")
	}
}

// printLive writes the tables of snapshots and restores.
func (r *result) printLive(w io.Writer) {
	if len(r.Snapshots) > 0 {
		fmt.Fprintf(w, "%-44s %12s %12s %7s  %s\n", "live snapshot", "pause µs", "arming µs", "ratio", "armed pages in runs; copied")
		for i, s := range r.Snapshots {
			fmt.Fprintf(w, "%-44d %12.1f %12.1f %7.2f  %d in %d; %d\n", i+1, s.Pause, s.RawArm, s.ratio(), s.Armed, s.Runs, s.Copied)
		}
		fmt.Fprintln(w)
	}
	for _, f := range r.Files {
		fmt.Fprintf(w, "%s: paused for %.1f µs, %d pages of data, %d bytes\n", f.Path, f.Pause, f.Data, f.Stored)
	}
	if len(r.LazyRuns) > 0 {
		fmt.Fprintf(w, "%-44s %12s %12s %12s\n", "lazy restore", "first exit", "faults", "replayed")
		for i, l := range r.LazyRuns {
			fmt.Fprintf(w, "%-44d %9.1f µs %12d %12d\n", i+1, l.FirstExit, l.Faults, l.Replayed)
		}
		fmt.Fprintln(w)
	}
}

func (r *result) writeJSON(w io.Writer) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// reportTo returns where the JSON object and the table go. The file is opened
// before anything is run. out is nil where there is to be no object.
func reportTo(name string, stdout, stderr io.Writer) (out, table io.Writer, err error) {
	switch name {
	case "":
		return nil, stdout, nil
	case "-":
		return stdout, stderr, nil
	}
	f, err := os.Create(name)
	if err != nil {
		return nil, nil, fmt.Errorf("-json: %w", err)
	}
	return f, stdout, nil
}
