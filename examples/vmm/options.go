//go:build linux && amd64

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/guestmm/guestmm/examples/vmm/internal/boot"
	"github.com/guestmm/guestmm/examples/vmm/internal/machine"
)

const usage = `usage: vmm [flags]
       vmm -kernel FILE [-initrd FILE] [-append STRING] [-cpus N] [-mem SIZE]

Without a kernel it runs a guest of its own, which checks itself: dirty pages by
log and by ring, a region added and one removed while it runs, memory given back,
the guest sealed, and clones of it. It exits with 0 if all was as it should be.

  -mem SIZE      memory of the guest, such as 256M or 2G (256M; with -kernel 512M)
  -clones N      clones that run at once (8)
  -idle N        idle clones whose memory is measured (100)
  -samples N     how often each step of the table is timed (25)
  -seed N        of the guest's pattern (1)
  -quick         less of everything: 64M, 3 clones, 16 idle ones, 9 samples
  -json FILE     also write the result there as one JSON object; - is stdout, and the
                 table then goes to stderr

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
	o.memory = uint64(memory)
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
	} {
		if !given[name] {
			set()
		}
	}
}

// onlyWith are flags that mean something in one of the two modes.
var onlyWith = map[string]string{
	"initrd": "-kernel", "append": "-kernel", "cpus": "-kernel", "patience": "-kernel",
}

func (o *options) check(given map[string]bool) error {
	for name := range onlyWith {
		if given[name] && o.kernel == "" {
			return fmt.Errorf("-%s needs -kernel", name)
		}
	}
	if o.kernel != "" {
		for _, name := range []string{"clones", "idle", "samples", "seed", "quick", "json"} {
			if given[name] {
				return fmt.Errorf("-%s is of the built-in guest, and cannot be with -kernel", name)
			}
		}
		if !given["mem"] {
			o.memory = 512 << 20
		}
		return o.checkKernel()
	}
	if given["kernel"] {
		return errors.New("-kernel is empty")
	}
	if o.memory == 0 {
		o.memory = 256 << 20
	}
	switch {
	case o.memory < machine.MinMemory || o.memory > machine.MaxMemory || o.memory%4096 != 0:
		return fmt.Errorf("-mem %d: the built-in guest has whole pages, %d MiB to %d GiB", o.memory, machine.MinMemory>>20, uint64(machine.MaxMemory)>>30)
	case o.clones < 1 || o.clones > maxClones:
		return fmt.Errorf("-clones %d: from 1 to %d", o.clones, maxClones)
	case o.idle < 1 || o.idle > 5000:
		return fmt.Errorf("-idle %d: from 1 to 5000", o.idle)
	case o.samples < 5 || o.samples > 1000:
		return fmt.Errorf("-samples %d: from 5 to 1000", o.samples)
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
