package pager

import "fmt"

// A Mode is how the pages of an image get into a region.
type Mode uint8

const (
	// ModeCopy installs a copy of each page (UFFDIO_COPY). Every guest has its
	// own.
	ModeCopy Mode = iota
	// ModeContinue maps pages of a Cache, which all guests of an image share,
	// each through a MAP_PRIVATE mapping of its own (UFFDIO_CONTINUE): a page
	// is read once, and a guest that writes it gets its own.
	ModeContinue
	// ModeFile is a plain MAP_PRIVATE mapping of the image's file. The kernel
	// does everything, and there is nothing for a pager to do.
	ModeFile
)

func (m Mode) String() string {
	switch m {
	case ModeCopy:
		return "copy"
	case ModeContinue:
		return "continue"
	case ModeFile:
		return "private mapping of the file"
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// A Use says what a region is for; Choose answers it.
type Use struct {
	// Clones is how many guests of the same image this host runs at a time.
	Clones int
	// LocalFile: the image is a plain, uncompressed file here that outlives
	// the guests and does not change.
	LocalFile bool
	// Remote: a page takes long to get, from a network or by unpacking.
	Remote bool
	// Hugetlb: the memory has 2 MiB pages.
	Hugetlb bool
	// Balloon: the guest gives memory back (MADV_DONTNEED) and that must read
	// as zero afterwards.
	Balloon bool
	// MustFail: a page that cannot be read must be an error that the owner
	// hears of. A file mapping answers with SIGBUS.
	MustFail bool
	// WorkingSet: what the guest will touch is known, and to be there first.
	WorkingSet bool
	// Shared: the guest's memory is MAP_SHARED, as vhost-user wants it.
	Shared bool
}

// Choose returns the mode that suits a use best, and why in one sentence.
func Choose(u Use) (Mode, string) {
	switch {
	case u.Hugetlb:
		return ModeCopy, "pages of 2 MiB cannot be mapped from a file of the image, and are not cached for others"
	case u.Shared:
		return ModeCopy, "in shared memory a guest's writes would reach the pages that other guests map"
	case u.LocalFile && !u.Remote && !u.Balloon && !u.MustFail:
		return ModeFile, "the kernel pages a local file in by itself, without a round trip to a server, and clones share its page cache"
	case u.Clones > 1 && !u.Balloon:
		return ModeContinue, "clones share one copy of each page, which is read once"
	case u.Clones > 1:
		return ModeContinue, "clones share one copy of each page; the pager stays for the guest's life, since memory that is given back would show the image again without it"
	case u.Balloon:
		return ModeCopy, "memory given back must read as zero, where a file mapping would show the image again"
	case u.MustFail:
		return ModeCopy, "a page that cannot be read is an error with a name, where a file mapping answers with SIGBUS"
	case u.WorkingSet:
		return ModeCopy, "the pages that will be wanted can be installed before they are"
	}
	return ModeCopy, "the image is not a local file that could be mapped"
}
