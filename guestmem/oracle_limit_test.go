package guestmem

import "encoding/binary"

// Limits on address space and data, on both sides: op.data is the limit in bytes, 0
// for none, and op.prot which one.

const (
	sysPrlimit64 = 302

	rlimitData = 2
	rlimitAS   = 9
)

func drawLimit(g *generator, o *op) {
	if o.data = uint64(g.intn(300))*page + 100; g.intn(3) > 0 {
		o.data = 0
	}
	o.prot = Prot(g.intn(2))
}

func softLimit(_ *opWorld, as *AddressSpace, o op) result {
	l := as.Limits()
	if o.prot == 0 {
		l.MaxSpace = int64(o.data)
	} else {
		l.MaxData = int64(o.data)
	}
	as.SetLimits(l)
	return result{}
}

// kernelLimit adds what the helper has itself.
func kernelLimit(k *kernelView, o op) kernelCall {
	which, cur := uint64(rlimitAS), o.data+k.overhead
	if o.prot != 0 {
		which, cur = rlimitData, o.data+k.dataOverhead
	}
	if o.data == 0 {
		cur = ^uint64(0)
	}
	in := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, cur), ^uint64(0))
	return kernelCall{code: callSyscall, bufferArg: 3, bufferMapped: true, in: in,
		args: [7]uint64{sysPrlimit64, 0, which, 0, 0}}
}
