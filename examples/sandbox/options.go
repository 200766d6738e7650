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

	"github.com/guestmm/guestmm/examples/sandbox/internal/kernel"
	"github.com/guestmm/guestmm/guestmem"
)

const usage = `usage: sandbox [flags] [--] [PROGRAM [ARGS...]]

Runs PROGRAM, an x86-64 Linux executable of this host, on a KVM vCPU.
Without PROGRAM it runs a demonstration.

  -root DIR    what the program sees as /, read-only (default /)
  -mem SIZE    the program's memory, such as 64MiB or 1G (default 1GiB)
  -vcpus N     how many of its threads run at once (default 2)
  -trace       log each system call to stderr
  -stats       print a table of figures to stderr at exit
  -profile FILE
               write where exits and faults come from, for "go tool pprof";
               - prints a table to stderr
  -json FILE   write the figures as JSON; - is stdout
  -map FILE    draw the address spaces as they are when the first program ends: FILE
               ends in .svg or .html
  -fuzzloop N  run PROGRAM N times from one snapshot of it, with rollback between
               the runs; each reads the same stdin. Then some times in the plain
               way, unseen. The last line of stdout says how fast each was
  -fuzzloop-at PLACE
               where the snapshot is taken: entry, before PROGRAM's first
               instruction (default), or stdin, at its first read of stdin
  -h           print this

The exit status is the program's, 128+n if signal n killed it, 125 if the
sandbox fails, 126 if PROGRAM cannot run, 127 if it is not found.
`

// options are the command line.
type options struct {
	help     bool
	root     string
	mem      uint64 // bytes
	vcpus    int
	trace    bool
	stats    bool
	json     string
	profile  string
	picture  string
	fuzzLoop int // runs; 0: no loop
	fuzzAt   kernel.CheckpointAt
	program  []string // empty: the demonstration
}

const maxVCPUs = 64

func parseOptions(args []string) (*options, error) {
	o := &options{mem: 1 << 30}
	fs := flag.NewFlagSet("sandbox", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&o.root, "root", "/", "")
	fs.Func("mem", "", func(s string) (err error) {
		o.mem, err = parseSize(s)
		return err
	})
	fs.IntVar(&o.vcpus, "vcpus", 2, "")
	fs.BoolVar(&o.trace, "trace", false, "")
	fs.BoolVar(&o.stats, "stats", false, "")
	fs.StringVar(&o.json, "json", "", "")
	fs.StringVar(&o.profile, "profile", "", "")
	fs.Func("map", "", func(s string) (err error) {
		o.picture = s
		_, err = pictureFormat(s)
		return err
	})
	place := fuzzFlags(fs, o)
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		o.help = true
		return o, nil
	case err != nil:
		return nil, failed(fmt.Errorf("%w (-h lists the flags)", err))
	case o.vcpus < 1 || o.vcpus > maxVCPUs:
		return nil, failed(fmt.Errorf("-vcpus %d: want 1 to %d", o.vcpus, maxVCPUs))
	case o.fuzzLoop > 0 && (o.picture != "" || o.stats || o.json != "" || o.profile != ""):
		return nil, failed(errors.New("-fuzzloop has figures of its own: no -map, -stats, -json or -profile beside it"))
	case *place && o.fuzzAt == kernel.NoCheckpoint:
		return nil, failed(errors.New("-fuzzloop-at says where -fuzzloop begins: it needs -fuzzloop N"))
	}
	o.program = fs.Args()
	return o, nil
}

// fuzzFlags adds the flags of the fuzz loop.
func fuzzFlags(fs *flag.FlagSet, o *options) (placeGiven *bool) {
	places := map[string]kernel.CheckpointAt{"entry": kernel.AtEntry, "stdin": kernel.AtStdin}
	place := kernel.AtEntry
	placeGiven = new(bool)
	fs.Func("fuzzloop", "", func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return fmt.Errorf("%q runs: want a number from 1 on", s)
		}
		o.fuzzLoop, o.fuzzAt = n, place
		return nil
	})
	fs.Func("fuzzloop-at", "", func(s string) error {
		at, ok := places[s]
		if !ok {
			return fmt.Errorf("%q is no place: want entry or stdin", s)
		}
		*placeGiven = true
		if place = at; o.fuzzLoop > 0 {
			o.fuzzAt = at
		}
		return nil
	})
	return placeGiven
}

// parseSize reads "4096", "64K", "64KiB", "64kb", "1.5G": powers of 1024 all.
func parseSize(s string) (uint64, error) {
	upper := strings.ToUpper(strings.TrimSpace(s))
	number := strings.TrimRight(upper, "KMGTIB")
	shift, ok := map[string]int{
		"": 0, "B": 0, "K": 10, "KB": 10, "KIB": 10, "M": 20, "MB": 20, "MIB": 20,
		"G": 30, "GB": 30, "GIB": 30, "T": 40, "TB": 40, "TIB": 40,
	}[upper[len(number):]]
	n, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil || math.IsNaN(n) || math.IsInf(n, 0) || strings.ContainsAny(number, "XP_") {
		return 0, fmt.Errorf("%q is no size; examples are 64MiB and 1G", s)
	}
	const page, most = 4096, guestmem.MaxMemory
	n *= float64(uint64(1) << shift)
	if n < page || n > most {
		return 0, fmt.Errorf("%q is out of range: want 4KiB to 4TiB", s)
	}
	return (uint64(n) + page - 1) &^ (page - 1), nil
}
