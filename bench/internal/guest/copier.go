package guest

import (
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// owned copies through a handle of its own.
type owned struct {
	handle *guestmem.Handle
	acc    guestmem.Accessor
}

func (c *owned) ReadEach(addrs []uint64, p []byte) error {
	for _, at := range addrs {
		if _, err := c.acc.ReadAt(ctx, p, addr.GVA(at)); err != nil {
			return err
		}
	}
	return nil
}

func (c *owned) WriteEach(addrs []uint64, p []byte) error {
	for _, at := range addrs {
		if _, err := c.acc.WriteAt(ctx, p, addr.GVA(at)); err != nil {
			return err
		}
	}
	return nil
}

// Roots are the handle and the space with its memory.
func (c *owned) Roots() []any { return []any{c.handle, &c.acc} }

func (c *owned) Close() error {
	c.handle.Close()
	return nil
}

// pooled copies through the address space itself.
type pooled struct{ as *guestmem.AddressSpace }

func (c pooled) ReadEach(addrs []uint64, p []byte) error {
	for _, at := range addrs {
		if _, err := c.as.ReadAt(ctx, p, addr.GVA(at)); err != nil {
			return err
		}
	}
	return nil
}

func (c pooled) WriteEach(addrs []uint64, p []byte) error {
	for _, at := range addrs {
		if _, err := c.as.WriteAt(ctx, p, addr.GVA(at)); err != nil {
			return err
		}
	}
	return nil
}

func (pooled) Close() error { return nil }
