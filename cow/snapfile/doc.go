// Package snapfile reads and writes snapshot files: the memory of a guest at an
// instant, with the opaque state of its vCPUs and devices. docs/snapfile.md has
// the format, byte by byte.
//
// The model:
//
//	file        header, data, state, tables; whole or not there at all: Write
//	chunk       some pages of one region, as they are or made smaller by a Codec,
//	            with a checksum; what is read, checked and decoded at once
//	extent      a run of pages of a region, in a chunk, or known to be zero
//	full        pages in no extent are zero
//	increment   pages in no extent are those of the parent, another file, which is
//	            known by its identity
//	raw         full, not encoded, and laid out as memory is: can be mapped MAP_PRIVATE
//
// Every byte of a file is covered: the header by its own checksum, state and tables
// by those in the header, chunks by those in the tables, and everything else has to be
// zero or is not there. Checksums are CRC-32C, which finds damage, not forgery: who
// must not trust the files' author signs them.
//
// # Ways to read
//
//	Restore     eager: all is verified before the guest runs
//	ReadPages   lazy, as Source for a pager: Open has verified header, tables and
//	            state, and each chunk is verified when something is served from it
//	Raw         by the kernel: nobody looks, so Verify comes before
//
// # Crashes
//
// Write makes a temporary in the directory of the file, .guestmm-<16 hex
// digits>.snaptmp, syncs it, renames it and syncs the directory. Killed at any
// point it leaves the file as it was, or the new one, and perhaps the temporary.
// Its writer holds a flock on that for life: one that can be locked is stale, and the
// next Write to the directory removes it, or RemoveStale.
//
// # Locks
//
// cache.mu is innermost, for list operations alone. pass.mu is held across the
// caller's Progress. Workers of a Write wait for each other by turns (see batch) and
// hold nothing.
//
//	you are in           you may
//	Image, Codec         anything but wait for that very Write
//	Progress             anything that does not wait for the call that it is of
//	Writer.WriteAt       anything, for ranges of your own
//
// # What it does not do
//
// It knows nothing of guestmem.Memory: *guestmem.Snapshot has an Image. It has no
// codec of its own, merges no chains, and deletes nothing but stale temporaries. Files
// are for amd64's pages of 4 KiB.
//
// On Linux it uses flock, lseek SEEK_HOLE (3.1) and sync_file_range (2.6.17); on other
// systems files are not cleaned up after, and holes are read.
package snapfile
