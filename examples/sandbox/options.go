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
  -h           print this

The exit status is the program's, 128+n if signal n killed it, 125 if the
sandbox fails, 126 if PROGRAM cannot run, 127 if it is not found.
`

// options are the command line.
type options struct {
	help    bool
	root    string
	mem     uint64 // bytes
	vcpus   int
	trace   bool
	stats   bool
	json    string
	profile string
	program []string // empty: the demonstration
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
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		o.help = true
		return o, nil
	case err != nil:
		return nil, failed(fmt.Errorf("%w (-h lists the flags)", err))
	case o.vcpus < 1 || o.vcpus > maxVCPUs:
		return nil, failed(fmt.Errorf("-vcpus %d: want 1 to %d", o.vcpus, maxVCPUs))
	}
	o.program = fs.Args()
	return o, nil
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
