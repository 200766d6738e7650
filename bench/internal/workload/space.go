package workload

import (
	"fmt"
	"math/rand/v2"
)

// newSpace returns a new space that closes with the run.
func newSpace(run *Run, sub Subject) (Space, error) {
	s, err := sub.NewSpace()
	if err != nil {
		return nil, err
	}
	run.OnClose(func() error {
		err := s.Close()
		sub.Settle()
		return err
	})
	return s, nil
}

// newCopier returns a copier that closes with the run.
func newCopier(run *Run, s Space, kind CopierKind) (Copier, error) {
	c, err := s.NewCopier(kind)
	if err != nil {
		return nil, err
	}
	run.OnClose(c.Close)
	return c, nil
}

// mapMany maps n adjacent areas of areaSize bytes that cannot merge, since
// their protections alternate between read-write and read-only, and returns
// the lowest address.
func mapMany(s Space, n int, areaSize uint64) (uint64, error) {
	base, err := s.Map(uint64(n)*areaSize, 0)
	if err != nil {
		return 0, err
	}
	for i := range n {
		prot := Read | Write
		if i%2 == 1 {
			prot = Read
		}
		if err := s.MapAt(base+uint64(i)*areaSize, areaSize, prot); err != nil {
			return 0, fmt.Errorf("area %d of %d: %w", i, n, err)
		}
	}
	return base, nil
}

// mapTouched maps length bytes and writes to each page, in address order or
// in a random one, which scatters the frames.
func mapTouched(s Space, length uint64, order pageOrder) (uint64, error) {
	base, err := s.Map(length, Read|Write)
	if err != nil {
		return 0, err
	}
	pages := stride(base, length, PageSize)
	if order == scattered {
		shuffle(pages)
	}
	return base, writeTo(s, pages)
}

type pageOrder int

const (
	contiguous pageOrder = iota
	scattered
)

func writeTo(s Space, addrs []uint64) error {
	c, err := s.NewCopier(Owned)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.WriteEach(addrs, []byte{1, 2, 3, 4, 5, 6, 7, 8})
}

func readFrom(s Space, addrs []uint64) error {
	c, err := s.NewCopier(Owned)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.ReadEach(addrs, make([]byte, 8))
}

// stride returns every step-th address of length bytes from base.
func stride(base, length, step uint64) []uint64 {
	addrs := make([]uint64, 0, length/step)
	for off := uint64(0); off < length; off += step {
		addrs = append(addrs, base+off)
	}
	return addrs
}

// shuffle puts addrs into an order that is random and always the same.
func shuffle(addrs []uint64) {
	rng := rand.New(rand.NewPCG(1, 2))
	rng.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
}

// randomWords returns n random 8-byte aligned addresses.
func randomWords(base, length uint64, n int) []uint64 {
	rng := rand.New(rand.NewPCG(3, 4))
	addrs := make([]uint64, n)
	for i := range addrs {
		addrs[i] = base + rng.Uint64N(length/8)*8
	}
	return addrs
}

// repeat returns addr n times.
func repeat(addr uint64, n int) []uint64 {
	addrs := make([]uint64, n)
	for i := range addrs {
		addrs[i] = addr
	}
	return addrs
}
