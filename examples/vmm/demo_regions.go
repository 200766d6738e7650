//go:build linux && amd64

package main

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/guestmm/guestmm/examples/vmm/internal/guest"
	"github.com/guestmm/guestmm/examples/vmm/internal/machine"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/kvm"
)

// discard gives memory of both halves, and of the shared area, back to the host; the
// guest reads zeroes there, and writes there again.
func (d *demo) discard(ctx context.Context, g *machine.Guest) error {
	for _, x := range []struct {
		area     guest.Area
		first, n uint64
	}{
		{g.Data, g.Data.Pages / 4, g.Data.Pages / 2},
		{g.Shared, 3, 5},
	} {
		if err := g.Discard(ctx, x.area, x.first, x.n); err != nil {
			return err
		}
		var pages []guest.Entry
		for i := range x.n {
			pages = append(pages, guest.Entry(x.area.ID<<48|(x.first+i)))
		}
		if err := d.settle(g, pages...); err != nil {
			return err
		}
	}
	if err := g.Do(ctx, guest.Run, 2000); err != nil {
		return err
	}
	return d.settle(g)
}

const (
	holeAnswer = 0x600dcafe0badf00d
	holeWord   = 0x1122334455667788
)

// removeRegion takes the hot region away: the guest's accesses there exit, as do
// those in a hole and stores to the read-only region.
func (d *demo) removeRegion(ctx context.Context, g *machine.Guest) error {
	if err := g.RemoveHot(); err != nil {
		return err
	}
	for _, at := range []addr.GPA{g.Hot.Base + 8*addr.PageSize, g.Hole + 16} {
		loads, stores, err := 0, 0, error(nil)
		t, err := g.Touch(ctx, at, holeWord, func(e kvm.VCPUExit) error {
			if e.GPA != at || len(e.Data) != 8 {
				return fmt.Errorf("exit at %v of %d bytes, expected one at %v", e.GPA, len(e.Data), at)
			}
			if e.Access == guestmem.Read {
				loads++
				binary.LittleEndian.PutUint64(e.Data, holeAnswer)
				return nil
			}
			stores++
			if w := binary.LittleEndian.Uint64(e.Data); w != holeWord {
				return fmt.Errorf("the guest stores %#x at %v, told to store %#x", w, at, uint64(holeWord))
			}
			return nil
		})
		if err != nil {
			return err
		}
		if t.Before != holeAnswer || t.After != holeAnswer || loads != 2 || stores != 1 {
			return fmt.Errorf("at %v the guest loads %#x and %#x, with %d loads and %d stores that exit", at, t.Before, t.After, loads, stores)
		}
	}
	stores := 0
	t, err := g.Touch(ctx, g.ROM, holeWord, func(e kvm.VCPUExit) error {
		if e.GPA != g.ROM || e.Access != guestmem.Write {
			return fmt.Errorf("unexpected exit: %v", e)
		}
		stores++
		return nil
	})
	if err != nil {
		return err
	}
	if want := uint64(g.ROM) / addr.PageSize; t.Before != want || t.After != want || stores != 1 {
		return fmt.Errorf("the read-only region holds %#x, then %#x, should be %#x; %d stores exit", t.Before, t.After, want, stores)
	}
	return g.CheckROM(ctx)
}
