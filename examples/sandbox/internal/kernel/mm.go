//go:build linux && amd64

package kernel

import (
	"context"
	"sync/atomic"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
	"github.com/guestmm/guestmm/guestmem"
)

// mm is an address space and what was loaded into it. A vfork child uses its
// parent's until it executes a program or ends.
type mm struct {
	k    *Kernel
	as   *guestmem.AddressSpace // immutable
	exe  *vfs.Open              // /proc/self/exe; immutable
	argv []string               // /proc/self/cmdline; immutable
	env  []string               // /proc/self/environ; immutable

	stack uint64 // bytes of the first thread's, which are mapped at once; immutable

	// table: the program may set its signals' actions itself (actiontable.go).
	// Only while the process has one task and nobody shares the memory; that task's.
	table bool

	users int // guarded by k.mu

	// limited is whose limits the address space keeps: one of the processes in it, or
	// nil. Changed under k.mu.
	limited atomic.Pointer[Process]
}

// ref adds a user.
func (m *mm) refLocked() *mm {
	m.users++
	return m
}

// release drops a user. The last one returns every frame.
func (m *mm) release() {
	m.k.mu.Lock()
	m.users--
	last := m.users == 0
	m.k.mu.Unlock()
	if !last {
		return
	}
	m.k.stats.addSpace(m.as.Stats())
	if err := m.as.Close(); err != nil {
		m.k.fail(err)
	}
	m.exe.Unref()
}

// fork copies the address space in O(1).
func (m *mm) fork(ctx context.Context) (*mm, error) {
	as, err := m.k.timedFork(ctx, m.as)
	if err != nil {
		return nil, err
	}
	return &mm{k: m.k, as: as, exe: m.exe.Ref(), argv: m.argv, env: m.env, stack: m.stack, table: m.table, users: 1}, nil
}
