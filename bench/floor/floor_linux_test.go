//go:build amd64 || arm64

package floor

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/guestmm/guestmm/bench/internal/workload"
	"github.com/guestmm/guestmm/internal/testutil"
)

func TestMain(m *testing.M) { testutil.Main(m) }

// built returns the program.
func built(t *testing.T) *Program {
	t.Helper()
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	if _, err := exec.LookPath("cc"); err != nil {
		t.Skip("needs a C compiler:", err)
	}
	p, err := Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Every row has a figure of each who should have one. The wide ones are the next
// test's.
func TestRows(t *testing.T) {
	p := built(t)
	rows := 0
	for _, row := range workload.Rows() {
		if HasPeer(row) {
			if Has(row) {
				t.Errorf("%s is of two kinds", row.Name)
			}
			continue
		}
		if !Has(row) {
			if _, err := p.Blocking().Measure(row, 0); err != workload.ErrNoFigure {
				t.Errorf("%s: %v", row.Name, err)
			}
			continue
		}
		if row.Slow() {
			continue // TestSmall
		}
		rows++
		fig, err := p.Measure(row, time.Millisecond)
		if err != nil || fig.PerOp <= 0 || fig.Ops <= 0 {
			t.Errorf("%s, ours: %+v, %v", row.Name, fig, err)
		}
		c, err := p.Blocking().Measure(row, time.Millisecond)
		if err != nil || c.PerOp <= 0 || c.Ops != fig.Ops {
			t.Errorf("%s, in C: %+v, %v; ours has %d operations", row.Name, c, err, fig.Ops)
		}
		if s, err := p.Spinning().Measure(row, time.Millisecond); err != workload.ErrNoFigure && (err != nil || s.PerOp <= 0) {
			t.Errorf("%s, spinning: %+v, %v", row.Name, s, err)
		}
	}
	if rows == 0 {
		t.Error("no row")
	}
}

// What the rows do with a gigabyte, with little.
func TestSmall(t *testing.T) {
	p := built(t)
	const size = "16777216"
	for _, args := range [][]string{{"arm", size}, {"rearm", size, "20", "4"}, {"fork", size, "1"}, {"fork", size, "1000"}, {"many", "missing", "16", "3"}} {
		if fig, err := p.run(args...); err != nil || fig.PerOp <= 0 {
			t.Errorf("%v: %+v, %v", args, fig, err)
		}
	}
	a, err := newArmable(16 << 20)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if fig, err := a.arm(); err != nil || fig.PerOp <= 0 {
			t.Errorf("arm: %+v, %v", fig, err)
		}
	}
	if err := a.close(); err != nil {
		t.Error(err)
	}
	if fig, err := p.manyGuests(3); err != nil || fig.PerOp <= 0 || fig.Ops != 3*guestPages {
		t.Errorf("many guests: %+v, %v", fig, err)
	}
}

// Each round of a program that is kept is as good as its first.
func TestResident(t *testing.T) {
	p := built(t)
	peer := p.Blocking()
	const size = "16777216"
	for _, args := range [][]string{{"arm", size}, {"rearm", size, "20", "4"}, {"fork", size, "1"}} {
		row := workload.Row{Name: strings.Join(args, " ")}
		var pid int
		for round := range 3 {
			fig, err := peer.again(row, args)
			if err != nil || fig.PerOp <= 0 {
				t.Fatalf("%v: %+v, %v", args, fig, err)
			}
			if now := peer.kept.cmd.Process.Pid; round == 0 {
				pid = now
			} else if now != pid {
				t.Errorf("%v: round %d is another process's", args, round)
			}
		}
	}
	if err := peer.Finish(); err != nil {
		t.Error(err)
	}
	if err := peer.Close(); err != nil {
		t.Errorf("once more: %v", err)
	}
}

// One that fails says why, and is not asked again.
func TestResidentThatEnds(t *testing.T) {
	p := built(t)
	peer, row := p.Blocking(), workload.Row{Name: "none"}
	for range 2 {
		if fig, err := peer.again(row, []string{"arm", "1"}); err == nil || !strings.Contains(err.Error(), "Invalid argument") {
			t.Errorf("%+v, %v, want what the program says", fig, err)
		}
	}
	if _, err := peer.again(row, []string{"rearm", "16777216", "20", "4"}); err != nil {
		t.Fatal(err)
	}
	if err := peer.kept.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	peer.kept.cmd.Process.Wait()
	if fig, err := peer.again(row, nil); err == nil || peer.kept != nil {
		t.Errorf("%+v, %v of one that was killed", fig, err)
	}
	if err := peer.Close(); err != nil {
		t.Error(err)
	}
}

// A program that does nothing but start, and one that serves 4 096 faults more: a
// read and an ioctl for each.
func TestCallsAreCounted(t *testing.T) {
	p := built(t)
	fig, err := p.Blocking().Measure(workload.Row{Name: callsPrefix + tracedUFFD}, 0)
	if err != nil && strings.Contains(err.Error(), "Operation not permitted") {
		t.Skip("needs to trace its own children:", err)
	}
	if err != nil || fig.PerOp < 1.9 || fig.PerOp > 2.5 {
		t.Errorf("%+v, %v, want a read and an ioctl for each fault", fig, err)
	}
	if _, err := p.run("calls", "/no/such/program"); err == nil {
		t.Error("a program that is not there was counted")
	}
	if _, err := p.ownCalls(tracedUFFD); err == nil {
		t.Error("without a binary of our own, calls were counted")
	}
}

func TestTraced(t *testing.T) {
	for _, args := range [][]string{nil, {"-quick"}, {"traced"}, {"traced", "fault", ""}} {
		if isTraced, err := Traced(args); isTraced || err != nil {
			t.Errorf("%v: %v, %v", args, isTraced, err)
		}
	}
	for _, args := range [][]string{{"traced", "nonsense", "", "1"}, {"traced", "fault", "", "x"}} {
		if isTraced, err := Traced(args); !isTraced || err == nil {
			t.Errorf("%v: %v, %v", args, isTraced, err)
		}
	}
	if isTraced, err := Traced([]string{"traced", tracedFault, "", "100"}); !isTraced || err != nil {
		t.Errorf("%v, %v", isTraced, err)
	}
	p := built(t)
	if isTraced, err := Traced([]string{"traced", tracedUFFD, p.path, "512"}); !isTraced || err != nil {
		t.Errorf("%v, %v", isTraced, err)
	}
}

// The rows of others that the program has figures for exist.
func TestPeerRowsExist(t *testing.T) {
	for name := range peerRows {
		if _, err := workload.Find(name); err != nil {
			t.Error(err)
		}
	}
	for _, s := range workload.Growth() {
		if row := s.Row(s.Points[1]); (s.Of == "guests") != (guests(row) == s.Points[1]) {
			t.Errorf("%s: %d guests", row.Name, guests(row))
		}
	}
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	t.Setenv("CC", "no-such-compiler")
	if _, err := Build(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "no C compiler") {
		t.Errorf("got %v", err)
	}
	t.Setenv("CC", "false")
	if _, err := Build(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "floor.c") {
		t.Errorf("got %v", err)
	}
	for _, out := range []string{"", "x", "1.5", "0 7\n", "5 0\n"} {
		if fig, err := parse(out); err == nil {
			t.Errorf("%q: %+v", out, fig)
		}
	}
}
