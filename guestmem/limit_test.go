package guestmem

import (
	"errors"
	"syscall"
	"testing"
)

// Limits stop what would go beyond them, by ENOMEM and with nothing changed; they are
// inherited, and hold from when they are set.
func TestLimits(t *testing.T) {
	m := newMemory(t, 16<<20)
	const base = 0x10000000
	for _, tt := range []struct {
		name   string
		limits Limits
		do     func(as *AddressSpace) error
		want   error
	}{
		{"map within", Limits{MaxSpace: 12 * page}, func(as *AddressSpace) error { return mapPages(as, 4, r_) }, nil},
		{"map beyond", Limits{MaxSpace: 12*page - 1}, func(as *AddressSpace) error { return mapPages(as, 4, r_) }, ErrNoSpace},
		{"map over what is there", Limits{MaxSpace: 8 * page}, func(as *AddressSpace) error {
			_, err := as.Map(ctx, MapOptions{Addr: base, Length: 2 * page, Prot: r_, Flags: MapPrivate | MapAnonymous | MapFixed})
			return err
		}, nil},
		{"none at all", Limits{MaxSpace: -1}, func(as *AddressSpace) error { return mapPages(as, 1, r_) }, ErrNoSpace},
		{"data within", Limits{MaxData: 8 * page}, func(as *AddressSpace) error { return mapPages(as, 4, rw) }, nil},
		{"data beyond", Limits{MaxData: 8 * page}, func(as *AddressSpace) error { return mapPages(as, 5, rw) }, ErrNoSpace},
		{"what is no data", Limits{MaxData: 4 * page}, func(as *AddressSpace) error { return mapPages(as, 50, r_) }, nil},
		{"becomes data", Limits{MaxData: 7 * page}, func(as *AddressSpace) error { return as.Protect(base+4*page, 4*page, rw) }, ErrNoSpace},
		{"becomes data within", Limits{MaxData: 8 * page}, func(as *AddressSpace) error { return as.Protect(base+4*page, 4*page, rw) }, nil},
		{"is data already", Limits{MaxData: -1}, func(as *AddressSpace) error { return as.Protect(base, 4*page, rw|ProtExec) }, nil},
		{"grows", Limits{MaxSpace: 9 * page}, func(as *AddressSpace) error {
			_, err := as.Remap(ctx, RemapOptions{Addr: base, OldLength: 4 * page, NewLength: 6 * page, Flags: RemapMayMove})
			return err
		}, ErrNoSpace},
		{"moves", Limits{MaxSpace: 1}, func(as *AddressSpace) error {
			_, err := as.Remap(ctx, RemapOptions{Addr: base, OldLength: 4 * page, NewLength: 4 * page, Flags: RemapMayMove | RemapFixed, NewAddr: base + 20*page})
			return err
		}, nil},
		{"leaves a source", Limits{MaxSpace: 11 * page}, func(as *AddressSpace) error {
			_, err := as.Remap(ctx, RemapOptions{Addr: base, OldLength: 4 * page, NewLength: 4 * page, Flags: RemapMayMove | RemapDontUnmap})
			return err
		}, syscall.ENOMEM},
		{"heap", Limits{MaxData: 5 * page}, func(as *AddressSpace) error {
			if at, err := as.Brk(base + 65*page); err != nil || at != base+65*page {
				return err
			}
			return nil
		}, ErrNoSpace},
		{"heap within", Limits{MaxData: 5 * page}, func(as *AddressSpace) error {
			_, err := as.Brk(base + 65*page)
			return err
		}, ErrNoSpace},
		{"stack", Limits{MaxSpace: 8 * page}, func(as *AddressSpace) error { return as.Fault(ctx, base+99*page, Write) }, ErrNotMapped},
	} {
		t.Run(tt.name, func(t *testing.T) {
			as := newSpace(t, m)
			as.SetBreak(base + 63*page)
			mapAt(t, as, base, 4*page, rw)
			mapAt(t, as, base+4*page, 3*page, r_)
			mustMap(t, as, MapOptions{Addr: base + 100*page, Length: page, Prot: rw, Flags: MapPrivate | MapAnonymous | MapFixed | MapGrowsDown})
			mapAt(t, as, base+7*page, 0+page, r_)
			mustDo(t, as.Unmap(base+7*page, page))
			mapAt(t, as, base+4*page, 4*page, r_)
			mustDo(t, as.Unmap(base+100*page, page))
			if tt.name == "stack" {
				mustMap(t, as, MapOptions{Addr: base + 100*page, Length: page, Prot: rw, Flags: MapPrivate | MapAnonymous | MapFixed | MapGrowsDown})
			}
			as.SetLimits(tt.limits)
			before := as.String()
			child := mustFork(t, as)
			for _, s := range []*AddressSpace{as, child} {
				err := tt.do(s)
				if !errors.Is(err, tt.want) {
					t.Errorf("%v, want %v", err, tt.want)
				}
				if tt.want != nil && s.String() != before {
					t.Errorf("changed:\n%s\nwas\n%s", s, before)
				}
			}
			as.SetLimits(Limits{})
			mustDo(t, mapPages(as, 100, rw))
		})
	}
}

func mapPages(as *AddressSpace, n uint64, prot Prot) error {
	_, err := as.Map(ctx, MapOptions{Length: n * page, Prot: prot, Flags: MapPrivate | MapAnonymous})
	return err
}
