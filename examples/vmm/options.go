//go:build linux && amd64

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/examples/vmm/internal/boot"
	"github.com/guestmm/guestmm/examples/vmm/internal/machine"
)

const usage = `usage: vmm [flags]
       vmm -snapshot FILE [-increments N] [-tracker T] [-compress] [-mem SIZE] [-seed N] [-json FILE]
       vmm -restore FILE [-lazy] [-clones N] [-json FILE]
       vmm inspect [-json] FILE
       vmm verify FILE
       vmm -kernel FILE [-initrd FILE] [-append STRING] [-cpus N] [-mem SIZE]

Without a kernel it runs a guest of its own, which checks itself: dirty pages by
log and by ring, a region added and one removed while it runs, memory given back,
the guest sealed, and clones of it; then snapshots of a guest that goes on writing, a
fork of it, and a restore that starts before its memory is there. It exits with 0 if
all was as it should be.

  -mem SIZE      memory of the guest, such as 256M or 2G (256M; with -kernel 512M)
  -live SIZE     memory of the guest that is snapshotted while it runs (1G)
  -dir DIR       where its snapshot file goes meanwhile (the directory for temporary files)
  -clones N      clones that run at once (8; with -restore 1)
  -idle N        idle clones whose memory is measured (100)
  -samples N     how often each step of the table is timed (25)
  -seed N        of the guest's pattern (1)
  -quick         less of everything: 64M, 64M live, 3 clones, 16 idle ones, 9 samples
  -json FILE     also write the result there as one JSON object; - is stdout, and the
                 table then goes to stderr

A snapshot file is of the built-in guest too, taken while it writes. The guest that
was snapshotted and those that are restored check themselves.

  -snapshot FILE write one
  -increments N  and N more, FILE.1 to FILE.N, each of what was written since the one
                 before (0)
  -tracker T     how increments know what was written: live, by live snapshots, and the
                 guest runs on; or log, ring (KVM's), wp (write protection), or auto, the
                 cheapest of these on this host, and the guest stands still while a
                 file is written (live)
  -compress      by zstd
  -restore FILE  run the guest of one. All of the file is verified before the guest runs,
  -lazy          or each page when it is needed, and the guest starts at once

inspect prints what a file says of itself; verify reads all of it and of its parents.

With a kernel (bzImage or vmlinux) it boots Linux to a serial console on the
terminal; Ctrl-A x ends it. The kernel's own reboot or power-off is exit status 0.

  -kernel FILE   what to boot
  -initrd FILE   its initial file system
  -append STRING its command line (` + boot.DefaultCommandLine + `)
  -cpus N        vCPUs, 1 to 64 (1)
  -patience D    give up when the guest has been silent and busy for as long, unless it
                 has read from its console; 0: never (5m)
`

// maxClones bounds what clones that all write cost the host.
const maxClones = 64

type options struct {
	memory  uint64
	clones  int
	idle    int
	samples int
	seed    uint64
	quick   bool
	json    string
	touched uint64
	dir     string

	snapshot   string
	increments int
	tracker    string
	compress   bool
	restore    string
	lazy       bool

	kernel, initrd, append string
	cpus                   int
	patience               time.Duration
}

// size is a flag of bytes with a suffix.
type size uint64

func (s *size) String() string { return strconv.FormatUint(uint64(*s), 10) }

func (s *size) Set(text string) error {
	digits, shift := text, 0
	if i := strings.IndexAny("KMGT", strings.ToUpper(text[max(len(text)-1, 0):])); i >= 0 && text != "" {
		digits, shift = text[:len(text)-1], 10*(i+1)
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n == 0 || n > math.MaxUint64>>shift {
		return errors.New("want a number with K, M, G or T, such as 256M")
	}
	*s = size(n << shift)
	return nil
}

func parseOptions(args []string) (*options, error) {
	o := &options{clones: 8, idle: 100, samples: 25, seed: 1, cpus: 1, append: boot.DefaultCommandLine, patience: 5 * time.Minute}
	f := flag.NewFlagSet("vmm", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	var memory size
	f.Var(&memory, "mem", "")
	f.IntVar(&o.clones, "clones", o.clones, "")
	f.IntVar(&o.idle, "idle", o.idle, "")
	f.IntVar(&o.samples, "samples", o.samples, "")
	f.Uint64Var(&o.seed, "seed", o.seed, "")
	f.BoolVar(&o.quick, "quick", false, "")
	f.StringVar(&o.json, "json", "", "")
	touched := size(1 << 30)
	f.Var(&touched, "live", "")
	f.StringVar(&o.dir, "dir", "", "")
	f.StringVar(&o.snapshot, "snapshot", "", "")
	f.IntVar(&o.increments, "increments", 0, "")
	f.StringVar(&o.tracker, "tracker", "live", "")
	f.BoolVar(&o.compress, "compress", false, "")
	f.StringVar(&o.restore, "restore", "", "")
	f.BoolVar(&o.lazy, "lazy", false, "")
	f.StringVar(&o.kernel, "kernel", "", "")
	f.StringVar(&o.initrd, "initrd", "", "")
	f.StringVar(&o.append, "append", o.append, "")
	f.IntVar(&o.cpus, "cpus", o.cpus, "")
	f.DurationVar(&o.patience, "patience", o.patience, "")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	given := make(map[string]bool)
	f.Visit(func(x *flag.Flag) { given[x.Name] = true })
	o.memory, o.touched = uint64(memory), uint64(touched)
	if o.quick {
		o.shrink(given)
	}
	return o, o.check(given)
}

// shrink is -quick, for what was not given.
func (o *options) shrink(given map[string]bool) {
	for name, set := range map[string]func(){
		"clones":  func() { o.clones = 3 },
		"idle":    func() { o.idle = 16 },
		"samples": func() { o.samples = 9 },
		"mem":     func() { o.memory = 64 << 20 },
		"live":    func() { o.touched = 64 << 20 },
	} {
		if !given[name] {
			set()
		}
	}
}

// modes are the flags by which a run is something else than the demonstration, and
// what may be with each.
var modes = map[string][]string{
	"kernel":   {"initrd", "append", "cpus", "patience", "mem"},
	"snapshot": {"increments", "tracker", "compress", "mem", "seed", "json"},
	"restore":  {"lazy", "clones", "json"},
}

func (o *options) check(given map[string]bool) error {
	mode, err := modeOf(given)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if mode != "" && name != mode && !slices.Contains(modes[mode], name) {
			return fmt.Errorf("-%s cannot be with -%s", name, mode)
		}
	}
	if mode == "restore" && !given["clones"] {
		o.clones = 1
	}
	switch {
	case given["kernel"] && o.kernel == "", given["snapshot"] && o.snapshot == "", given["restore"] && o.restore == "":
		return fmt.Errorf("-%s is empty", mode)
	case mode == "kernel":
		if !given["mem"] {
			o.memory = 512 << 20
		}
		return o.checkKernel()
	}
	if o.memory == 0 {
		o.memory = 256 << 20
	}
	if err := errors.Join(checkSize("mem", o.memory), checkSize("live", o.touched)); err != nil {
		return err
	}
	switch {
	case o.clones < 1 || o.clones > maxClones:
		return fmt.Errorf("-clones %d: from 1 to %d", o.clones, maxClones)
	case o.idle < 1 || o.idle > 5000:
		return fmt.Errorf("-idle %d: from 1 to 5000", o.idle)
	case o.samples < 5 || o.samples > 1000:
		return fmt.Errorf("-samples %d: from 5 to 1000", o.samples)
	case o.tracker != "auto" && !slices.Contains(slices.Collect(maps.Keys(trackers)), o.tracker):
		return fmt.Errorf("-tracker %s: auto, live, log, ring or wp", o.tracker)
	case o.increments < 0 || o.increments >= snapfile.MaxChain:
		return fmt.Errorf("-increments %d: from 0 to %d", o.increments, snapfile.MaxChain-1)
	}
	return nil
}

// ofEveryRun are flags that are not of one mode alone.
var ofEveryRun = []string{"mem", "seed", "clones", "json"}

// modeOf returns the flag that says what to do, or nothing.
func modeOf(given map[string]bool) (mode string, err error) {
	for name, with := range modes {
		if given[name] {
			if mode != "" {
				return "", fmt.Errorf("-%s and -%s are two runs", min(mode, name), max(mode, name))
			}
			mode = name
		}
		for _, other := range with {
			if !slices.Contains(ofEveryRun, other) && given[other] && !given[name] {
				return "", fmt.Errorf("-%s needs -%s", other, name)
			}
		}
	}
	return mode, nil
}

func checkSize(name string, n uint64) error {
	if n < machine.MinMemory || n > machine.MaxMemory || n%4096 != 0 {
		return fmt.Errorf("-%s %d: the built-in guest has whole pages, %d MiB to %d GiB", name, n, machine.MinMemory>>20, uint64(machine.MaxMemory)>>30)
	}
	return nil
}

func (o *options) checkKernel() error {
	switch {
	case o.cpus < 1 || o.cpus > boot.MaxCPUs:
		return fmt.Errorf("-cpus %d: from 1 to %d", o.cpus, boot.MaxCPUs)
	case o.memory < boot.MinMemory || o.memory > boot.MaxMemory || o.memory%4096 != 0:
		return fmt.Errorf("-mem %d: a kernel has whole pages, %d MiB to %d GiB", o.memory, boot.MinMemory>>20, uint64(boot.MaxMemory)>>30)
	case o.patience < 0:
		return fmt.Errorf("-patience %v: not negative", o.patience)
	}
	return nil
}
