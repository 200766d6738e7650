package guestmem

import (
	"syscall"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// What an op is on the kernel's side: one call of the helper process.

// Codes of the helper; testdata/oracle/helper.c has the same.
const (
	callSyscall = iota // args[0] is its number; the others its arguments
	callPlace          // an mmap that chooses: what lies outside of the window is taken back
	callLoad           // args: address, length
	callStore
	callString
	callTouch    // args: address, access
	callPopulate // args: address, length, access
	callWord     // args: address, what, old or value, new
	callFork     // args: slot
	callExit
	callNothing
	callForce // args: address, length
	_         // configure, the zygote's
	callRemap // an mremap, args as callSyscall
)

// kernelCall is one call.
type kernelCall struct {
	code uint64
	args [7]uint64
	// in is copied to the call's buffer before. out says that the call leaves
	// bytes there, as many as its value says.
	in  []byte
	out bool
	// bufferArg is the argument that is to be the place of the call's buffer in
	// the ring's file, 0 if none.
	bufferArg int
	// bufferMapped says that it is to be the buffer's address instead.
	bufferMapped bool
	value        valueKind
	// answer is the answer where the kernel is not asked, otherwise nil.
	answer *result
}

// valueKind says what a call returns.
type valueKind uint8

const (
	valueNone    valueKind = iota // only whether it failed
	valueAddress                  // an address or an errno
	valueCount                    // a count or an errno
	valueRaw                      // never an errno
)

// Numbers of system calls on amd64.
const (
	sysMmap     = 9
	sysMprotect = 10
	sysMunmap   = 11
	sysBrk      = 12
	sysPread    = 17
	sysPwrite   = 18
	sysMadvise  = 28
)

const madvDontneed = 4

// kernelView is what a call has to know of the kernel's side.
type kernelView struct {
	window addr.Range
	end    addr.GVA // of the address space (TASK_SIZE)
	fds    []int    // of worldFiles, in the helper
	ring   int      // the descriptor of the ring
	pinned bool     // the op has found a pin on this side
	// What of the helper's own memory counts against limits, in bytes.
	overhead, dataOverhead uint64
}

// beyond moves a range that ends outside of the window, where the kernel would
// go on and this side does not, to the end of all addresses: what is beyond
// the bounds of an AddressSpace is to be what is beyond the kernel's.
func (k *kernelView) beyond(at addr.GVA, length uint64) addr.GVA {
	up, ok := addr.RoundUpLength(length)
	end, ok2 := at.Add(up)
	if ok && ok2 && end > k.window.End && at < k.end {
		return at + (k.end - k.window.End)
	}
	return at
}

// belowAll moves a fixed mapping that lies below the window, where some kernels
// allow one (the lowest address that they place at is higher than that), to
// page 0, which none does.
func (k *kernelView) belowAll(at addr.GVA) addr.GVA {
	if at < k.window.Start {
		return addr.GVA(at.PageOffset())
	}
	return at
}

// clip shortens a range that ends outside of the window to a page beyond it,
// where there is never anything: the answer is the same, and the helper's own
// memory is left alone.
func (k *kernelView) clip(at addr.GVA, length uint64) uint64 {
	up, ok := addr.RoundUpLength(length)
	end, ok2 := at.Add(up)
	switch {
	case !ok || !ok2 || end <= k.window.End+page || at >= k.end:
		return length
	case at < k.window.End:
		return uint64(k.window.End + page - at)
	}
	return min(length, page)
}

func kernelMap(k *kernelView, o op) kernelCall {
	fd, off := ^uint64(0), o.off
	if o.object > 0 {
		fd = uint64(k.fds[(o.object-1)%len(k.fds)])
	}
	flags := o.flags &^ MapAnonymous
	if o.object == 0 {
		flags |= MapAnonymous // an object or none is what makes it anonymous here
	}
	code, at := uint64(callPlace), k.beyond(o.at.RoundDown(), o.length)+offset(o.at.PageOffset()) // of a hint
	if flags&(MapFixed|MapFixedNoReplace) != 0 {
		code, at = callSyscall, k.belowAll(k.beyond(o.at, o.length))
	}
	if o.length >= 1<<30 {
		flags |= MapNoReserve
	}
	return kernelCall{code: code, value: valueAddress,
		args: [7]uint64{sysMmap, uint64(at), o.length, uint64(o.prot), uint64(flags), fd, off}}
}

func kernelUnmap(k *kernelView, o op) kernelCall {
	return kernelCall{code: callSyscall, args: [7]uint64{sysMunmap, uint64(k.beyond(o.at, o.length)), o.length}}
}

func kernelProtect(k *kernelView, o op) kernelCall {
	return kernelCall{code: callSyscall, args: [7]uint64{sysMprotect, uint64(o.at), k.clip(o.at, o.length), uint64(o.prot)}}
}

func kernelDiscard(k *kernelView, o op) kernelCall {
	return kernelCall{code: callSyscall, args: [7]uint64{sysMadvise, uint64(o.at), k.clip(o.at, o.length), madvDontneed}}
}

func kernelBrk(k *kernelView, o op) kernelCall {
	at := o.at
	if at > k.window.End {
		at = k.beyond(at, 0)
	}
	return kernelCall{code: callSyscall, value: valueRaw, args: [7]uint64{sysBrk, uint64(at)}}
}

// kernelReadAt is a write to a file, whose source is the guest.
func kernelReadAt(k *kernelView, o op) kernelCall {
	return kernelCall{code: callSyscall, value: valueCount, out: true, bufferArg: 4,
		args: [7]uint64{sysPwrite, uint64(k.ring), uint64(o.at), min(o.length, maxCopy)}}
}

func kernelWriteAt(k *kernelView, o op) kernelCall {
	n := min(o.length, maxCopy)
	return kernelCall{code: callSyscall, value: valueCount, in: patternOf(o.data, int(n)), bufferArg: 4,
		args: [7]uint64{sysPread, uint64(k.ring), uint64(o.at), n}}
}

// kernelDevice is a write to a page that may be read-only by now, if there is a
// pin.
func kernelDevice(k *kernelView, o op) kernelCall {
	c := kernelWriteAt(k, o)
	if k.pinned {
		c.code, c.bufferArg, c.args = callForce, 0, [7]uint64{uint64(o.at), o.length}
	}
	return c
}

func kernelLoad(_ *kernelView, o op) kernelCall {
	return kernelCall{code: callLoad, value: valueRaw, out: true, args: [7]uint64{uint64(o.at), min(o.length, maxCopy)}}
}

func kernelStore(_ *kernelView, o op) kernelCall {
	n := min(o.length, maxCopy)
	return kernelCall{code: callStore, value: valueRaw, in: patternOf(o.data, int(n)), args: [7]uint64{uint64(o.at), n}}
}

func kernelString(_ *kernelView, o op) kernelCall {
	return kernelCall{code: callString, value: valueCount, out: true, args: [7]uint64{uint64(o.at), min(o.length, maxCopy)}}
}

// What callWord does.
const (
	wordLoad = iota
	wordStore
	wordSwap
	word64 = 4 // added for 64 bits
)

func kernelWord(size uint64) func(*kernelView, op) kernelCall {
	return func(_ *kernelView, o op) kernelCall {
		if uint64(o.at)%size != 0 { // no question to a CPU, which can
			return kernelCall{answer: &result{errno: syscall.EINVAL}}
		}
		var what uint64
		switch o.kind {
		case opStore32, opStore64:
			what = wordStore
		case opSwap32, opSwap64:
			what = wordSwap
		}
		if size == 8 {
			what += word64
		}
		return kernelCall{code: callWord, value: valueRaw, args: [7]uint64{uint64(o.at), what, o.data, swapNew(o)}}
	}
}

func kernelTouch(_ *kernelView, o op) kernelCall {
	return kernelCall{code: callTouch, value: valueRaw, args: [7]uint64{uint64(o.at), uint64(o.prot)}}
}

// kernelPopulate is a touch of each page. It is a pin's counterpart too, which
// is to have no other effect that can be seen.
func kernelPopulate(_ *kernelView, o op) kernelCall {
	r := pagesOf(o)
	return kernelCall{code: callPopulate, args: [7]uint64{uint64(r.Start), uint64(r.Len()), uint64(o.prot)}}
}

func kernelNothing(*kernelView, op) kernelCall { return kernelCall{code: callNothing} }

func kernelFork(_ *kernelView, o op) kernelCall {
	return kernelCall{code: callFork, args: [7]uint64{o.data % maxFamily}}
}

func kernelClose(*kernelView, op) kernelCall { return kernelCall{code: callExit} }
