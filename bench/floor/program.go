package floor

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/guestmm/guestmm/bench/internal/workload"
)

//go:embed csrc/floor.c
var source string

// A Program is the C program, compiled.
type Program struct {
	// Self is the binary whose main passes its arguments to Traced; or empty: then
	// its own system calls cannot be counted.
	Self string

	ctx     context.Context
	path    string
	armable *armable // kept between rounds of ours; nil: none
}

// Build compiles the program into dir.
//
// Its error says in one line what is missing.
func Build(ctx context.Context, dir string) (*Program, error) {
	cc := os.Getenv("CC")
	if cc == "" {
		cc = "cc"
	}
	if _, err := exec.LookPath(cc); err != nil {
		return nil, fmt.Errorf("there is no C compiler: %w", err)
	}
	src, bin := filepath.Join(dir, "floor.c"), filepath.Join(dir, "floor")
	if err := os.WriteFile(src, []byte(source), 0o600); err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, cc, "-O2", "-o", bin, src, "-lpthread").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s floor.c: %w: %s", cc, err, firstLine(out))
	}
	return &Program{ctx: ctx, path: bin}, nil
}

// run starts the program and returns what it measured.
func (p *Program) run(args ...string) (workload.Figure, error) {
	out, err := exec.CommandContext(p.ctx, p.path, args...).Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return workload.Figure{}, fmt.Errorf("floor %v: %w: %s", args, err, firstLine(exit.Stderr))
	}
	if err != nil {
		return workload.Figure{}, fmt.Errorf("floor %v: %w", args, err)
	}
	return parse(string(out))
}

func parse(out string) (workload.Figure, error) {
	var fig workload.Figure
	if n, err := fmt.Sscanf(out, "%f %d\n", &fig.PerOp, &fig.Ops); n != 2 || err != nil || fig.PerOp <= 0 || fig.Ops <= 0 {
		return workload.Figure{}, fmt.Errorf("floor says %q", out)
	}
	return fig, nil
}

func firstLine(out []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}

// pages is how many pages a round of that budget touches: whole runs, and
// enough of them for the threads to fall into step.
func pages(budget time.Duration) int {
	n := int(budget / (10 * time.Microsecond))
	return max(512, n/bulkRun*bulkRun)
}

// pagesOf is how many pages a round of that row touches: a guest that is restored
// has at least 16 MiB, or it would be there before it is touched.
func pagesOf(row workload.Row, budget time.Duration) int {
	if strings.HasPrefix(row.Name, restorePrefix) {
		return max(4096, pages(budget))
	}
	return pages(budget)
}
