package guestmem

import "github.com/guestmm/guestmm/guestmem/addr"

// Advice: on both sides one call with a number.

func doAdvise(at addr.GVA, length uint64, v Advice) op {
	return op{kind: opAdvise, at: at, length: length, data: uint64(v)}
}

func softAdvise(_ *opWorld, as *AddressSpace, o op) result {
	return result{errno: errnoOf(as.Advise(ctx, o.at, o.length, Advice(int32(o.data))))}
}

func kernelAdvise(k *kernelView, o op) kernelCall {
	return kernelCall{code: callSyscall, args: [7]uint64{sysMadvise, uint64(o.at), k.clip(o.at, o.length), o.data}}
}

// drawnAdvice is what is drawn, the more interesting more often.
var drawnAdvice = []Advice{
	AdviceNormal, AdviceRandom, AdviceSequential, AdviceWillNeed, AdviceDontNeed, AdviceFree, AdviceFree,
	AdviceDontFork, AdviceDontFork, AdviceDoFork, AdviceMergeable, AdviceUnmergeable, AdviceHugePage, AdviceNoHugePage,
	AdviceDontDump, AdviceDoDump, AdviceWipeOnFork, AdviceWipeOnFork, AdviceKeepOnFork, AdviceCold, AdvicePageOut,
	AdvicePopulateRead, AdvicePopulateRead, AdvicePopulateWrite, AdvicePopulateWrite, AdviceDontNeedLocked, AdviceCollapse,
	AdviceRemove, AdviceRemove, AdviceGuardInstall, AdviceGuardInstall, AdviceGuardInstall, AdviceGuardRemove,
}

func drawAdvise(g *generator, o *op) {
	drawRange(g, o)
	o.data = uint64(drawnAdvice[g.intn(len(drawnAdvice))])
	if g.odd() {
		o.data = uint64([...]Advice{5, 6, 7, 26, 99, 1000, -1}[g.intn(7)])
	}
}
