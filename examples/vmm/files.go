//go:build linux && amd64

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/dustin/go-humanize"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/examples/vmm/internal/codec"
)

// A fileCommand gets what follows its name.
type fileCommand func(ctx context.Context, args []string, stdout, stderr io.Writer) error

// fileCommands are those on snapshot files alone; nothing of KVM is needed.
var fileCommands = map[string]fileCommand{
	"inspect": inspect,
	"verify":  verifyFile,
}

// errUsage is a command line that makes no sense.
var errUsage = errors.New("usage")

// oneFile parses what inspect and verify are given.
func oneFile(name string, args []string, define func(*flag.FlagSet)) (string, error) {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	if define != nil {
		define(f)
	}
	if err := f.Parse(args); err != nil {
		return "", fmt.Errorf("%w: %w", errUsage, err)
	}
	if f.NArg() != 1 || f.Arg(0) == "" {
		return "", fmt.Errorf("%w: %s takes one file", errUsage, name)
	}
	return f.Arg(0), nil
}

func openFile(path string) (*snapfile.File, error) {
	codecs, err := codec.All()
	if err != nil {
		return nil, err
	}
	return snapfile.Open(path, snapfile.OpenOptions{Codecs: codecs})
}

// inspect prints what a file says of itself.
func inspect(_ context.Context, args []string, stdout, _ io.Writer) (err error) {
	var asJSON bool
	path, err := oneFile("inspect", args, func(f *flag.FlagSet) { f.BoolVar(&asJSON, "json", false, "") })
	if err != nil {
		return err
	}
	f, err := openFile(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info := f.Info()
	if asJSON {
		b, err := json.MarshalIndent(info, "", "  ")
		if err != nil {
			return err
		}
		_, err = stdout.Write(append(b, '\n'))
		return err
	}
	var text strings.Builder
	describeFile(&text, &info)
	_, err = io.WriteString(stdout, text.String())
	return err
}

// describeFile writes for people what the chain has, the file itself first.
func describeFile(w io.Writer, info *snapfile.Info) {
	for i := info; i != nil; i = i.Parent {
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		row := func(name, format string, args ...any) {
			fmt.Fprintf(t, "%s\t"+format+"\n", append([]any{name}, args...)...)
		}
		row("file", "%s", i.Path)
		row("id", "%v", i.ID)
		row("written", "%v", i.Created.Format("2006-01-02 15:04:05 MST"))
		row("format", "version %d, %v, chunks of %s, codec %s", i.Version, i.Layout, humanize.IBytes(i.ChunkSize), i.Codec)
		row("guest", "%s, %s of state", humanize.IBytes(i.GuestBytes), humanize.IBytes(i.StateBytes))
		row("data", "%s in %d chunks, stored as %s; index %s", humanize.IBytes(i.DataBytes()), i.Chunks, humanize.IBytes(i.StoredBytes), humanize.IBytes(i.IndexBytes))
		if i.Parent != nil {
			row("increment to", "%s", i.ParentPath)
		}
		t.Flush()
		fmt.Fprintln(w)
		t = tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(t, "region\tbase\tsize\tpages\tdata\tzero\t")
		for _, r := range i.Regions {
			access := ""
			if r.ReadOnly {
				access = ", read-only"
			}
			fmt.Fprintf(t, "%s%s\t%#x\t%s\t%s\t%d\t%d\t\n", r.Name, access, uint64(r.Base), humanize.IBytes(r.Size), humanize.IBytes(r.PageSize), r.DataPages, r.ZeroPages)
		}
		t.Flush()
		if i.Parent != nil {
			fmt.Fprintln(w)
		}
	}
}

// verifyFile reads all of a file and of its parents.
func verifyFile(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	path, err := oneFile("verify", args, nil)
	if err != nil {
		return err
	}
	f, err := openFile(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	bar := newProgress(stderr)
	defer bar.done()
	if err := f.Verify(ctx, bar.bytes("verify")); err != nil {
		return err
	}
	bar.done()
	info := f.Info()
	_, err = fmt.Fprintf(stdout, "%s: ok, %d %s\n", path, info.Chain(), map[bool]string{true: "file", false: "files"}[info.Chain() == 1])
	return err
}
