package peer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const benchModule = "github.com/guestmm/guestmm/bench"

// BuildGVisor builds bench/gvisorpeer into dir and returns the binary's path.
// Its error says in one line what is missing.
func BuildGVisor(ctx context.Context, dir string) (string, error) {
	// What GOFLAGS says, as -mod=mod does, need not hold in a workspace.
	out, err := goCommand(ctx, "", []string{"GOFLAGS="}, "list", "-f", "{{.Dir}}", benchModule)
	if err != nil {
		return "", fmt.Errorf("the sources of bench/gvisorpeer were not found: %w", err)
	}
	src := filepath.Join(strings.TrimSpace(out), "gvisorpeer")
	if _, err := os.Stat(src); err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "gvisorpeer")
	// A module of its own, outside the workspace; gVisor needs cgo off.
	env := []string{"GOWORK=off", "CGO_ENABLED=0", "GOFLAGS="}
	if _, err := goCommand(ctx, src, env, "build", "-o", bin, "."); err != nil {
		return "", fmt.Errorf("building bench/gvisorpeer: %w", err)
	}
	return bin, nil
}

func goCommand(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return "", fmt.Errorf("go %s: %s", args[0], summary(exit.Stderr))
	}
	if err != nil {
		return "", fmt.Errorf("go %s: %w", args[0], err)
	}
	return string(out), nil
}

// summary returns the last line of what a go command said, where the error
// stands, without what it downloaded.
func summary(stderr []byte) string {
	lines := strings.Split(strings.TrimSpace(string(stderr)), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}
