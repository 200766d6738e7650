package main

import (
	"fmt"
	"os"
	"time"

	"github.com/guestmm/guestmm/bench/internal/workload"
	"gvisor.dev/gvisor/pkg/context"
	"gvisor.dev/gvisor/pkg/cpuid"
	"gvisor.dev/gvisor/pkg/memutil"
	"gvisor.dev/gvisor/pkg/sentry/arch"
	"gvisor.dev/gvisor/pkg/sentry/kernel/auth"
	"gvisor.dev/gvisor/pkg/sentry/limits"
	"gvisor.dev/gvisor/pkg/sentry/mm"
	"gvisor.dev/gvisor/pkg/sentry/pgalloc"
	"gvisor.dev/gvisor/pkg/sentry/platform"
)

// subject is one memory file on the null platform.
type subject struct {
	ctx  context.Context
	file *pgalloc.MemoryFile
}

func newSubject() (*subject, error) {
	cpuid.Initialize()
	const name = "gvisorpeer"
	fd, err := memutil.CreateMemFD(name, 0)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	file, err := pgalloc.NewMemoryFile(os.NewFile(uintptr(fd), name), pgalloc.MemoryFileOpts{
		DisableMemoryAccounting: true,
	})
	if err != nil {
		return nil, fmt.Errorf("memory file: %w", err)
	}
	// The limit on the stack chooses the usual top-down layout.
	lim := limits.NewLimitSet()
	if _, err := lim.Set(limits.Stack, limits.Limit{Cur: 8 << 20, Max: 8 << 20}, true); err != nil {
		return nil, fmt.Errorf("limits: %w", err)
	}
	ctx := valueContext{context.Background(), map[any]any{
		auth.CtxCredentials:   auth.NewAnonymousCredentials(),
		limits.CtxLimits:      lim,
		pgalloc.CtxMemoryFile: file,
		platform.CtxPlatform:  nullPlatform{},
	}}
	return &subject{ctx: ctx, file: file}, nil
}

// NewSpace returns an empty memory manager with the layout of a process.
func (s *subject) NewSpace() (workload.Space, error) {
	m, err := mm.NewMemoryManager(nullPlatform{}, s.file)
	if err != nil {
		return nil, err
	}
	if _, err := m.SetMmapLayout(arch.New(arch.Host), limits.FromContext(s.ctx)); err != nil {
		return nil, err
	}
	return &space{s, m}, nil
}

// Settle leaves time for the memory file's releaser, which gives pages back
// on a goroutine of its own and cannot be waited for.
func (s *subject) Settle() { time.Sleep(20 * time.Millisecond) }

func (s *subject) Close() error {
	s.file.Destroy()
	return nil
}

// valueContext answers a fixed set of keys, and is its parent otherwise.
type valueContext struct {
	context.Context
	values map[any]any
}

func (c valueContext) Value(key any) any {
	if v, ok := c.values[key]; ok {
		return v
	}
	return c.Context.Value(key)
}
