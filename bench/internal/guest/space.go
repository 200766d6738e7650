package guest

import (
	"context"

	"github.com/guestmm/guestmm/bench/internal/workload"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

var ctx = context.Background()

// space is one address space.
type space struct {
	mem *guestmem.Memory
	as  *guestmem.AddressSpace
}

func anonymous(length uint64, prot workload.Prot) guestmem.MapOptions {
	return guestmem.MapOptions{
		Length: length,
		Prot:   guestmem.Prot(prot), // both are numerically PROT_*
		Flags:  guestmem.MapPrivate | guestmem.MapAnonymous,
	}
}

func (s *space) Map(length uint64, prot workload.Prot) (uint64, error) {
	at, err := s.as.Map(ctx, anonymous(length, prot))
	return uint64(at), err
}

func (s *space) MapAt(at, length uint64, prot workload.Prot) error {
	opts := anonymous(length, prot)
	opts.Addr = addr.GVA(at)
	opts.Flags |= guestmem.MapFixed
	_, err := s.as.Map(ctx, opts)
	return err
}

func (s *space) Unmap(at, length uint64) error {
	return s.as.Unmap(addr.GVA(at), length)
}

func (s *space) Protect(at, length uint64, prot workload.Prot) error {
	return s.as.Protect(addr.GVA(at), length, guestmem.Prot(prot))
}

func (s *space) Discard(at, length uint64) error {
	return s.as.Discard(addr.GVA(at), length)
}

func (s *space) Fault(at uint64) error {
	return s.as.Fault(ctx, addr.GVA(at), guestmem.Write)
}

func (s *space) Fork() (workload.Space, error) {
	child, err := s.as.Fork()
	if err != nil {
		return nil, err
	}
	return &space{s.mem, child}, nil
}

func (s *space) NewCopier(kind workload.CopierKind) (workload.Copier, error) {
	if kind == workload.Pooled {
		return pooled{s.as}, nil
	}
	h := s.mem.NewHandle()
	return &owned{h, s.as.With(h)}, nil
}

func (s *space) Close() error { return s.as.Close() }

// TableBytes returns what all page tables take, with those of other spaces.
func (s *space) TableBytes() uint64 { return s.mem.Stats().Tables * addr.PageSize }
