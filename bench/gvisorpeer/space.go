package main

import (
	"github.com/guestmm/guestmm/bench/internal/workload"
	"gvisor.dev/gvisor/pkg/context"
	"gvisor.dev/gvisor/pkg/hostarch"
	"gvisor.dev/gvisor/pkg/sentry/memmap"
	"gvisor.dev/gvisor/pkg/sentry/mm"
	"gvisor.dev/gvisor/pkg/usermem"
)

// space is one memory manager.
type space struct {
	sub *subject
	mm  *mm.MemoryManager
}

func accessType(p workload.Prot) hostarch.AccessType {
	return hostarch.AccessType{
		Read:    p&workload.Read != 0,
		Write:   p&workload.Write != 0,
		Execute: p&workload.Exec != 0,
	}
}

func anonymous(length uint64, prot workload.Prot) memmap.MMapOpts {
	return memmap.MMapOpts{
		Length:   length,
		Private:  true,
		Perms:    accessType(prot),
		MaxPerms: hostarch.AnyAccess,
	}
}

func (s *space) Map(length uint64, prot workload.Prot) (uint64, error) {
	addr, err := s.mm.MMap(s.sub.ctx, anonymous(length, prot))
	return uint64(addr), err
}

func (s *space) MapAt(addr, length uint64, prot workload.Prot) error {
	opts := anonymous(length, prot)
	opts.Addr, opts.Fixed, opts.Unmap = hostarch.Addr(addr), true, true
	_, err := s.mm.MMap(s.sub.ctx, opts)
	return err
}

func (s *space) Unmap(addr, length uint64) error {
	return s.mm.MUnmap(s.sub.ctx, hostarch.Addr(addr), length)
}

func (s *space) Protect(addr, length uint64, prot workload.Prot) error {
	return s.mm.MProtect(hostarch.Addr(addr), length, accessType(prot), false)
}

func (s *space) Discard(addr, length uint64) error {
	return s.mm.Decommit(hostarch.Addr(addr), length)
}

func (s *space) Fault(addr uint64) error {
	return s.mm.HandleUserFault(s.sub.ctx, hostarch.Addr(addr), hostarch.Write, 0)
}

func (s *space) Fork() (workload.Space, error) {
	child, err := s.mm.Fork(s.sub.ctx)
	if err != nil {
		return nil, err
	}
	return &space{s.sub, child}, nil
}

// NewCopier ignores the kind: the manager keeps nothing per reader.
func (s *space) NewCopier(workload.CopierKind) (workload.Copier, error) {
	return copier{s.sub.ctx, s.mm}, nil
}

func (s *space) Close() error {
	s.mm.DecUsers(s.sub.ctx)
	return nil
}

type copier struct {
	ctx context.Context
	mm  *mm.MemoryManager
}

func (c copier) ReadEach(addrs []uint64, p []byte) error {
	for _, addr := range addrs {
		if _, err := c.mm.CopyIn(c.ctx, hostarch.Addr(addr), p, usermem.IOOpts{}); err != nil {
			return err
		}
	}
	return nil
}

func (c copier) WriteEach(addrs []uint64, p []byte) error {
	for _, addr := range addrs {
		if _, err := c.mm.CopyOut(c.ctx, hostarch.Addr(addr), p, usermem.IOOpts{}); err != nil {
			return err
		}
	}
	return nil
}

// Roots is the manager.
func (c copier) Roots() []any { return []any{c.mm} }

func (copier) Close() error { return nil }
