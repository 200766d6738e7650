//go:build amd64

package guestmem

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Corners by hand: what Linux is known to answer, written down. Each case runs
// here and on the kernel, with everything compared after each step, and both
// must give the stated answer.

// corner is a case.
type corner struct {
	name   string
	window string // of hostWindows; "32MiB" if empty
	around bool   // with fault-around here
	huge   bool   // asks how whole 2 MiB are aligned
	guards bool   // has guard pages
	// steps are given where page n of the window is. The first leaf table ends
	// with page 0.
	steps func(p func(n int) addr.GVA) []step
}

// step is an operation and its answer.
type step struct {
	op op
	// want is "" where both need only agree, or the status: "ok", the name of an
	// errno, SEGV_MAPERR, SEGV_ACCERR or SIGBUS; and then, if it says more than the
	// status, the value: a page "p(3)", or a number.
	want string
	// areas is the layout of the window after, in pages: "0-3 rw-p, 5-6 r--s";
	// "=" as before, "" not asked.
	areas string
	// data is what was read.
	data string
}

// runCorner runs one case on both sides.
func runCorner(t *testing.T, c corner) {
	t.Helper()
	runCorners(t, []corner{c})
}

func runCorners(t *testing.T, cases []corner) {
	t.Helper()
	path := helperFile(t, helperBytes(t))
	hosts := map[string]*kernelHost{}
	for _, c := range cases {
		if c.window == "" {
			c.window = "32MiB"
		}
		for _, win := range hostWindows {
			if win.name == c.window && hosts[c.window] == nil {
				hosts[c.window] = newConfiguredHost(t, path, win)
			}
		}
		k := hosts[c.window]
		if k == nil {
			t.Fatalf("no window %q", c.window)
		}
		t.Run(c.name, func(t *testing.T) {
			if k.unfit != "" {
				t.Skip(k.unfit)
			}
			if c.guards && k.noGuards {
				t.Skip("this kernel has no guards, or does not tell them from pages (Linux 6.15)")
			}
			if c.huge && !k.alignsHuge {
				t.Skip("this kernel aligns large areas in another way (Linux 6.13)")
			}
			c.run(t, k)
		})
		if k.err != nil {
			delete(hosts, c.window)
		}
	}
}

func (c corner) run(t *testing.T, k *kernelHost) {
	s := sequence{exclusions: activeExclusions(t), window: windowNamed(c.window)}
	for i := range s.exclusions {
		s.exclusions[i].beyond = nil // a corner is what it says
	}
	if c.around {
		s.seed = 3
	}
	o, err := s.start(k)
	mustDo(t, err)
	base := k.view.window.Start
	p := func(n int) addr.GVA { return base + addr.GVA(n)*page }
	before := ""
	for i, st := range c.steps(p) {
		if diff := o.segment(func() op { return st.op }, 1, true); diff != "" {
			t.Fatalf("step %d: %s", i, o.abandon(diff))
		}
		got := statusOf(o.last, st.op.kind, base)
		if st.want != "" && got != st.want && !strings.HasPrefix(got, st.want+" ") {
			t.Errorf("step %d: op%s: both answer %q, want %q", i, st.op.source(k.view.window), got, st.want)
		}
		if st.data != "" && string(o.last.data) != st.data {
			t.Errorf("step %d: op%s: both read %q, want %q", i, st.op.source(k.view.window), o.last.data, st.data)
		}
		after := ""
		if as := o.w.spaces[st.op.space]; as != nil {
			after = pagesIn(as, base)
		}
		want := st.areas
		if want == "=" {
			want = before
		}
		if st.areas != "" && after != strings.TrimSpace(want) {
			t.Errorf("step %d: op%s: areas %q, want %q", i, st.op.source(k.view.window), after, want)
		}
		before = after
	}
	if diff := o.end(); diff != "" {
		t.Error(diff)
	}
}

func windowNamed(name string) hostWindow {
	for _, w := range hostWindows {
		if w.name == name {
			return w
		}
	}
	return hostWindow{}
}

// statusOf is an answer as a step wants it.
func statusOf(r result, kind opKind, base addr.GVA) string {
	status := "ok"
	switch {
	case r.skipped:
		return "skipped"
	case r.errno != 0:
		status = unix.ErrnoName(r.errno)
	case r.trouble != 0:
		status = [...]string{"", "SEGV_MAPERR", "SEGV_ACCERR", "SIGBUS"}[r.trouble]
	}
	if kind == opMap || kind == opBrk || kind == opRemap {
		if r.errno != 0 {
			return status
		}
		at := addr.GVA(r.value)
		text := fmt.Sprintf("%s p(%d)", status, int64(at-base)/int64(page))
		if off := at.PageOffset(); off != 0 {
			text += fmt.Sprintf("+%d", off)
		}
		return text
	}
	return fmt.Sprintf("%s %d", status, r.value)
}

// pagesIn shows the areas in pages from base, joined where nothing visible but
// their place in an object separates them.
func pagesIn(as *AddressSpace, base addr.GVA) string {
	var s []string
	list, err := softAreas(as)
	if err != nil {
		return err.Error()
	}
	for _, a := range list {
		s = append(s, fmt.Sprintf("%d-%d %s", int64(a.Start-base)/int64(page), int64(a.End-base)/int64(page), a.perm))
	}
	return strings.Join(s, ", ")
}
