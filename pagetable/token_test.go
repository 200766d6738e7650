package pagetable_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/pagetable"
)

// Every call that takes away demands a token; without one, or with one of its
// own making, a lookup does not compile.
func TestR1TakingAwayWithoutATokenDoesNotCompile(t *testing.T) {
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("compiles a violation; to run it have the go command in PATH")
	}
	for _, c := range []struct{ dir, calls, want string }{
		{"withtoken", "", ""},
		{"withouttoken", "t.", "not enough arguments in call to"},
		{"owntoken", "t.", "does not implement pagetable.Token"},
	} {
		t.Run(c.dir, func(t *testing.T) {
			cmd := exec.Command(goTool, "build", "-gcflags=-e", "-o", os.DevNull, "./testdata/"+c.dir)
			out, err := cmd.CombinedOutput()
			if (err == nil) != (c.want == "") {
				t.Fatalf("build: %v\n%s", err, out)
			}
			if c.want == "" {
				return
			}
			for _, line := range linesWith(t, filepath.Join("testdata", c.dir, "lookup.go"), c.calls) {
				if !hasError(string(out), fmt.Sprintf("lookup.go:%d:", line), c.want) {
					t.Errorf("line %d: no error says %q:\n%s", line, c.want, out)
				}
			}
		})
	}
}

// linesWith returns the numbers of the lines that begin with the words, but for
// indentation.
func linesWith(t *testing.T, name, words string) (lines []int) {
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for n := 1; s.Scan(); n++ {
		if strings.HasPrefix(strings.TrimSpace(s.Text()), words) {
			lines = append(lines, n)
		}
	}
	if len(lines) == 0 {
		t.Fatalf("%s has no line that begins with %q", name, words)
	}
	return lines
}

// hasError reports whether the compiler says so of a place; "not enough
// arguments" is said of the closing parenthesis, "have" and "want" follow.
func hasError(out, place, want string) bool {
	for line := range strings.Lines(out) {
		if strings.Contains(line, place) && strings.Contains(line, want) {
			return true
		}
	}
	return false
}

// A token is worth something for its own table, and until its change ends.
func TestR1TokensOfOthersPanic(t *testing.T) {
	w := newWorld(t, 64, false)
	s, other := w.newSpace(), w.newSpace()
	s.write(page, 1)
	foreign := other.t.LockChange()
	ended := s.t.LockChange()
	s.t.UnlockChange(ended)
	r := addr.Range{Start: page, End: 2 * page}
	for name, tok := range map[string]pagetable.Token{"foreign": foreign, "ended": ended, "nil": nil, "embedded nil": struct{ pagetable.Token }{}} {
		var spare pagetable.Spare
		var gone pagetable.Retired
		for what, fn := range map[string]func(){
			"PlanZap":      func() { s.t.PlanZap(tok, r, r) },
			"Zap":          func() { s.t.Zap(tok, r, r, pagetable.ZapPlan{}, new(pagetable.ZapSpare), pagetable.NewZapped()) },
			"Rezap":        func() { s.t.Rezap(tok, r, pagetable.NewZapped()) },
			"PlanProtect":  func() { s.t.PlanProtect(tok, r, 0) },
			"Protect":      func() { s.t.Protect(tok, r, 0, pagetable.PathPlan{}, &spare, &gone, nil) },
			"Share":        func() { s.t.Share(tok, 1, 2) },
			"End":          func() { s.t.End(tok) },
			"UnlockChange": func() { s.t.UnlockChange(tok) },
		} {
			testutil.Panics(t, name+" token: "+what, fn)
		}
	}
	other.t.UnlockChange(foreign)
	if v, ok := s.see(page); !ok || v != 1 {
		t.Error("a call that panicked took a page away")
	}
}

func TestOneChangeAtATime(t *testing.T) {
	w := newWorld(t, 64, false)
	s := w.newSpace()
	inside := 0 // guarded by the change lock, for the race detector to see
	done := make(chan struct{})
	for range 4 {
		go func() {
			defer func() { done <- struct{}{} }()
			for range 200 {
				tok := s.t.LockChange()
				inside++
				s.t.UnlockChange(tok)
			}
		}()
	}
	for range 4 {
		<-done
	}
	if inside != 800 {
		t.Errorf("%d changes, want 800", inside)
	}
}
