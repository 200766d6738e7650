//go:build linux && amd64

package kernel

import (
	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem"
)

// sysMremap is mremap(2): pages move by their page-table entries. The clock page
// stays where it is, since it may not be written anywhere.
func sysMremap(t *Task, a args) (uint64, error) {
	const fixed = uint64(guestmem.RemapFixed)
	if a[3]>>32 != 0 {
		return 0, unix.EINVAL
	}
	if err := checkClockPage(a[0], max(roundUp(a[1]), pageSize), guestmem.ProtWrite); err != nil {
		return 0, unix.EPERM
	}
	if err := t.k.checkSealed(a[0], max(roundUp(a[1]), roundUp(a[2]))); err != nil {
		return 0, err
	}
	if a[3]&fixed != 0 {
		if err := t.k.checkSealed(a[4], roundUp(a[2])); err != nil {
			return 0, err
		}
	}
	at, err := t.limitedSpace().Remap(t.call, guestmem.RemapOptions{
		Addr: gva(a[0]), OldLength: a[1], NewLength: a[2], Flags: guestmem.RemapFlags(a[3]), NewAddr: gva(a[4]),
	})
	return uint64(at), err
}
