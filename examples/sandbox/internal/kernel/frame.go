//go:build linux && amd64

package kernel

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/kvm"
)

// The signal frame of x86-64, from low to high addresses:
//
//	sp ─► restorer             the handler returns there
//	      ucontext             flags, link, stack, sigcontext (256), mask
//	      siginfo (128)
//	      … up to 64-aligned
//	      xsave area, magic2
//	      128 bytes: red zone of what was interrupted
const (
	redZone = 128

	frameUContext = 8
	frameContext  = frameUContext + 40
	frameMaskAt   = frameContext + 256
	frameInfo     = frameMaskAt + 8
	frameSize     = frameInfo + sigInfoSize

	contextFPState = frameContext + 184

	ucFPXState, ucSigContextSS, ucStrictSS = 1, 2, 4

	ssOnStack, ssDisable = 1, 2
	ssAutoDisarm         = -1 << 31

	userCS, userSS = 0x33, 0x2b

	// flagsFromUser are the RFLAGS that a frame may set: not IF, IOPL and their like.
	flagsFromUser = 0x50dd5 // CF PF AF ZF SF TF DF OF RF AC
	flagsAlways   = 0x202   // IF and the bit that is always set

	// Software's 48 bytes in the legacy area say how long the area is.
	fxSoftware    = 464
	fpMagic1      = 0x46505853
	fpMagic2      = 0x46505845
	fxLegacy      = 512
	xsaveHeaderAt = 512

	legacyFeatures = 3 // x87 and SSE
)

// pushFrame writes the frame and sets the registers for the handler. The
// registers stay as they are if the stack cannot be written.
func (t *Task) pushFrame(info sigInfo, act action, mask uint64) error {
	if act.Flags&saRestorer == 0 {
		return unix.EFAULT // x86-64 has no other way back
	}
	regs := &t.cpu.Regs
	sp := regs.RSP - redZone
	onAlt := t.alt.contains(regs.RSP)
	if act.Flags&saOnStack != 0 && t.alt.size != 0 && !onAlt {
		sp, onAlt = uint64(t.alt.base)+t.alt.size, true
	}
	xsave, err := t.cpu.XSave()
	if err != nil {
		return err
	}
	fp := (sp - uint64(len(xsave)) - 4) &^ 63
	frame := (fp-frameSize)&^15 - 8
	if onAlt && !t.alt.contains(frame) {
		return unix.EFAULT // the alternate stack is full
	}
	b := make([]byte, fp-frame+uint64(len(xsave))+4)
	le := binary.LittleEndian
	le.PutUint64(b, act.Restorer)
	le.PutUint64(b[frameUContext:], ucFPXState|ucSigContextSS|ucStrictSS)
	t.alt.encode(b[frameUContext+16:], regs.RSP)
	encodeRegs(b[frameContext:], regs)
	le.PutUint64(b[frameContext+152:], t.trap.code)
	le.PutUint64(b[frameContext+160:], t.trap.vector)
	le.PutUint64(b[frameContext+168:], mask)
	le.PutUint64(b[frameContext+176:], t.trap.cr2)
	le.PutUint64(b[contextFPState:], fp)
	le.PutUint64(b[frameMaskAt:], mask)
	copy(b[frameInfo:], info.encode())
	encodeXSave(b[fp-frame:], xsave)
	if err := t.writeGuest(b, frame); err != nil {
		return err
	}
	if t.alt.flags&ssAutoDisarm != 0 {
		t.alt = altStack{}
	}
	regs.RSP, regs.RIP = frame, act.Handler
	regs.RDI, regs.RSI, regs.RDX, regs.RAX = uint64(info.sig), frame+frameInfo, frame+frameUContext, 0
	regs.RFLAGS &^= 0x10500 // TF, DF, RF
	return nil
}

// encodeXSave writes the area with Linux's description of it.
func encodeXSave(b, xsave []byte) {
	le := binary.LittleEndian
	copy(b, xsave)
	sw := b[fxSoftware:]
	le.PutUint32(sw[0:], fpMagic1)
	le.PutUint32(sw[4:], uint32(len(xsave)+4))
	le.PutUint64(sw[8:], le.Uint64(xsave[xsaveHeaderAt:])|legacyFeatures)
	le.PutUint32(sw[16:], uint32(len(xsave)))
	le.PutUint32(b[len(xsave):], fpMagic2)
}

// contextRegs lists the registers in the order of struct sigcontext.
func contextRegs(r *kvm.Regs) []*uint64 {
	return []*uint64{
		&r.R8, &r.R9, &r.R10, &r.R11, &r.R12, &r.R13, &r.R14, &r.R15,
		&r.RDI, &r.RSI, &r.RBP, &r.RBX, &r.RDX, &r.RAX, &r.RCX, &r.RSP, &r.RIP, &r.RFLAGS,
	}
}

func encodeRegs(b []byte, r *kvm.Regs) {
	list := contextRegs(r)
	for i, reg := range list {
		binary.LittleEndian.PutUint64(b[i*8:], *reg)
	}
	seg := b[len(list)*8:]
	binary.LittleEndian.PutUint16(seg[0:], userCS)
	binary.LittleEndian.PutUint16(seg[6:], userSS)
}

func (s altStack) encode(b []byte, sp uint64) {
	flags := s.flags
	switch {
	case s.size == 0:
		flags = ssDisable
	case s.contains(sp):
		flags |= ssOnStack
	}
	binary.LittleEndian.PutUint64(b[0:], uint64(s.base))
	binary.LittleEndian.PutUint32(b[8:], uint32(flags))
	binary.LittleEndian.PutUint64(b[16:], s.size)
}

// sysRtSigreturn takes the state back from the frame that the handler was
// called with. A frame that cannot be read, or makes no sense, is SIGSEGV.
func sysRtSigreturn(t *Task, _ args) (uint64, error) {
	at := t.cpu.Regs.RSP - 8 // the handler's return has popped the restorer
	b := make([]byte, frameInfo)
	if t.readGuest(b, at) != nil || t.restoreVector(binary.LittleEndian.Uint64(b[contextFPState:])) != nil {
		t.forceSignal(sigInfo{sig: int(unix.SIGSEGV), code: siKernel}, false)
		return 0, errNoReturn
	}
	regs := t.cpu.Regs // FSBase and GSBase are no part of the frame
	for i, reg := range contextRegs(&regs) {
		*reg = binary.LittleEndian.Uint64(b[frameContext+i*8:])
	}
	regs.RFLAGS = regs.RFLAGS&flagsFromUser | flagsAlways
	t.cpu.Regs = regs
	t.setMask(binary.LittleEndian.Uint64(b[frameMaskAt:]))
	_ = t.setAltStack(b[frameUContext+16:], regs.RSP)
	return 0, errNoReturn
}

// restoreVector takes the vector state back from an area in guest memory; none
// at 0. An area without Linux's description holds the legacy part alone.
func (t *Task) restoreVector(at uint64) error {
	if at == 0 {
		return nil
	}
	if at%64 != 0 {
		return unix.EFAULT
	}
	area, err := t.cpu.XSave() // for its length
	if err != nil {
		return err
	}
	if err := t.readGuest(area[:fxLegacy], at); err != nil {
		return err
	}
	le := binary.LittleEndian
	if le.Uint32(area[fxSoftware:]) == fpMagic1 && le.Uint32(area[fxSoftware+16:]) == uint32(len(area)) {
		if err := t.readGuest(area[fxLegacy:], at+fxLegacy); err != nil {
			return err
		}
	} else {
		clear(area[fxLegacy:])
		le.PutUint64(area[xsaveHeaderAt:], legacyFeatures)
	}
	clear(area[fxSoftware:fxLegacy])
	return t.cpu.SetXSave(area) // drops what the guest may not set
}
