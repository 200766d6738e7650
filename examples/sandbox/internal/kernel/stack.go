//go:build linux && amd64

package kernel

import (
	"crypto/rand"
	"encoding/binary"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// Keys of the auxiliary vector, <linux/auxvec.h>.
const (
	atNull, atPHDR, atPHENT, atPHNUM      = 0, 3, 4, 5
	atPageSize, atBase, atFlags, atEntry  = 6, 7, 8, 9
	atUID, atEUID, atGID, atEGID          = 11, 12, 13, 14
	atPlatform, atHWCap, atClockTick      = 15, 16, 17
	atSecure, atRandom, atHWCap2, atExecF = 23, 25, 26, 31
	atSysInfo, atMinSigStack              = 33, 51
)

const (
	maxArgString = 128 << 10 // of one argument or variable
	maxArgBytes  = 2 << 20   // of all together with their pointers: a quarter of the stack
)

// mapStack maps the stack and the guard below it.
func (k *Kernel) mapStack(as *guestmem.AddressSpace, prog *program) error {
	size := prog.stackSize()
	prot := guestmem.ProtRead | guestmem.ProtWrite
	if prog.image.ExecutableStack {
		prot |= guestmem.ProtExec
	}
	const flags = guestmem.MapPrivate | guestmem.MapFixed | guestmem.MapAnonymous
	for _, o := range []guestmem.MapOptions{
		{Addr: addr.GVA(stackTop - size - stackGuard), Length: stackGuard, Flags: flags | guestmem.MapNoReserve},
		{Addr: addr.GVA(stackTop - size), Length: size, Prot: prot, Flags: flags | guestmem.MapStack, Kind: guestmem.KindStack},
	} {
		if _, err := as.Map(k.ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// writeStack writes what a program finds on its stack:
//
//	0x7ffffffff000  8 zero bytes
//	                execfn, environment and argument strings, platform, 16 random bytes
//	                auxv … AT_NULL, envp … 0, argv … 0
//	rsp (16-aligned) argc
func (k *Kernel) writeStack(as *guestmem.AddressSpace, prog *program, at layout) (rsp uint64, err error) {
	im, err := layoutStack(prog, at)
	if err != nil {
		return 0, err
	}
	rsp = stackTop - uint64(len(im))
	_, err = as.WriteAt(k.ctx, im, addr.GVA(rsp))
	return rsp, err
}

// layoutStack returns the bytes that end at stackTop. E2BIG when there are too many.
func layoutStack(prog *program, at layout) ([]byte, error) {
	size := (len(prog.argv) + len(prog.env)) * 8
	for _, s := range append(append([]string{prog.execfn}, prog.argv...), prog.env...) {
		if len(s) >= maxArgString {
			return nil, unix.E2BIG
		}
		size += len(s) + 1
	}
	if size > maxArgBytes {
		return nil, unix.E2BIG
	}
	b := stackBuilder{at: stackTop - 8}
	execfn := b.str(prog.execfn)
	env, argv := b.strs(prog.env), b.strs(prog.argv)
	platform := b.str("x86_64")
	var seed [16]byte
	rand.Read(seed[:])
	random := b.bytes(seed[:])

	words := []uint64{uint64(len(argv))}
	words = append(append(words, argv...), 0)
	words = append(append(words, env...), 0)
	caps := hostCaps()
	phdr := uint64(0)
	if prog.image.PHDR != 0 || prog.image.PositionIndependent {
		phdr = at.base + prog.image.PHDR
	}
	if at.vdso != 0 {
		words = append(words, atSysInfo, at.vdso)
	}
	words = append(words,
		atHWCap, caps[atHWCap], atPageSize, pageSize, atClockTick, 100,
		atPHDR, phdr, atPHENT, 56, atPHNUM, uint64(prog.image.PHNum),
		atBase, at.loader, atFlags, 0, atEntry, at.base+prog.image.Entry,
		atUID, uint64(unix.Getuid()), atEUID, uint64(unix.Geteuid()),
		atGID, uint64(unix.Getgid()), atEGID, uint64(unix.Getegid()),
		atSecure, 0, atRandom, random, atHWCap2, caps[atHWCap2],
		atExecF, execfn, atPlatform, platform, atMinSigStack, max(caps[atMinSigStack], 2048),
		atNull, 0)
	return b.finish(words), nil
}

// stackBuilder lays strings from the top downwards.
type stackBuilder struct {
	at     uint64
	pieces [][]byte // from high to low
}

func (b *stackBuilder) bytes(p []byte) uint64 {
	b.at -= uint64(len(p))
	b.pieces = append(b.pieces, p)
	return b.at
}

func (b *stackBuilder) str(s string) uint64 { return b.bytes(append([]byte(s), 0)) }

func (b *stackBuilder) strs(list []string) []uint64 {
	at := make([]uint64, len(list))
	for i := len(list) - 1; i >= 0; i-- {
		at[i] = b.str(list[i])
	}
	return at
}

// finish puts the words below the strings so that the first lies 16-aligned.
func (b *stackBuilder) finish(words []uint64) []byte {
	start := (b.at - uint64(len(words))*8) &^ 15
	im := make([]byte, stackTop-start)
	for i, w := range words {
		binary.LittleEndian.PutUint64(im[i*8:], w)
	}
	at := uint64(stackTop - 8)
	for _, p := range b.pieces {
		at -= uint64(len(p))
		copy(im[at-start:], p)
	}
	return im
}

// hostCaps returns the host's own auxiliary vector: what the processor can do
// is the same in ring 3 of a guest, since CPUID cannot be made to say otherwise.
var hostCaps = sync.OnceValue(func() map[uint64]uint64 {
	caps := make(map[uint64]uint64)
	raw, _ := os.ReadFile("/proc/self/auxv")
	for ; len(raw) >= 16; raw = raw[16:] {
		caps[binary.LittleEndian.Uint64(raw)] = binary.LittleEndian.Uint64(raw[8:])
	}
	return caps
})
