package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrEncoding says that bytes are no state that this package has written, or of
// a later version.
var ErrEncoding = errors.New("not an encoded state")

// The encoding, little-endian throughout: a magic number that says what it is, a
// version, and sections. A reader passes over sections that it does not know, and
// refuses versions that it does not.
//
//	u32 magic, u32 version, { u32 tag, u32 length, bytes } ...
const (
	magicMachine = 0x4d4d4756 // "VGMM"
	magicVM      = 0x314d4756
	magicVCPU    = 0x55504356

	stateVersion = 1
)

// Tags of sections.
const (
	tagVM = iota + 1
	tagVCPU
	tagIRQChips
	tagPIT
	tagClock
	tagCPUID
	tagTSC
	tagRegs
	tagSregs
	tagXCR0
	tagXSave
	tagDebug
	tagEvents
	tagMP
	tagLAPIC
	tagMSRs
	tagUnread
)

// MarshalBinary implements encoding.BinaryMarshaler.
func (s *MachineState) MarshalBinary() ([]byte, error) {
	w := newStateWriter(magicMachine)
	vm, err := s.VM.MarshalBinary()
	w.section(tagVM, vm, err)
	for i := range s.VCPUs {
		v, err := s.VCPUs[i].MarshalBinary()
		w.section(tagVCPU, v, err)
	}
	return w.b, w.err
}

// UnmarshalBinary implements encoding.BinaryUnmarshaler.
//
// Errors: ErrEncoding, for any bytes whatever; s is unchanged then.
func (s *MachineState) UnmarshalBinary(b []byte) error {
	var out MachineState
	err := readState(b, magicMachine, func(tag uint32, b []byte) error {
		switch tag {
		case tagVM:
			return out.VM.UnmarshalBinary(b)
		case tagVCPU:
			var v VCPUState
			err := v.UnmarshalBinary(b)
			out.VCPUs = append(out.VCPUs, v)
			return err
		}
		return nil
	})
	if err == nil {
		*s = out
	}
	return err
}

// MarshalBinary implements encoding.BinaryMarshaler.
func (s *VMState) MarshalBinary() ([]byte, error) {
	w := newStateWriter(magicVM)
	if s.IRQChips != nil {
		w.value(tagIRQChips, s.IRQChips)
	}
	if s.PIT != nil {
		w.value(tagPIT, s.PIT)
	}
	w.value(tagClock, &s.Clock)
	return w.b, w.err
}

// UnmarshalBinary implements encoding.BinaryUnmarshaler. Errors: ErrEncoding.
func (s *VMState) UnmarshalBinary(b []byte) error {
	var out VMState
	err := readState(b, magicVM, func(tag uint32, b []byte) error {
		switch tag {
		case tagIRQChips:
			out.IRQChips = new([3][512]byte)
			return readValue(b, out.IRQChips)
		case tagPIT:
			out.PIT = new(PITState)
			return readValue(b, out.PIT)
		case tagClock:
			return readValue(b, &out.Clock)
		}
		return nil
	})
	if err == nil {
		*s = out
	}
	return err
}

// MarshalBinary implements encoding.BinaryMarshaler.
func (s *VCPUState) MarshalBinary() ([]byte, error) {
	w := newStateWriter(magicVCPU)
	w.value(tagCPUID, s.CPUID)
	w.value(tagTSC, s.TSCKHz)
	w.value(tagRegs, &s.Regs)
	w.value(tagSregs, &s.Sregs)
	w.value(tagXCR0, s.XCR0)
	w.section(tagXSave, s.XSave, nil)
	w.value(tagDebug, &s.Debug)
	w.value(tagEvents, &s.Events)
	w.value(tagMP, s.MP)
	if s.LAPIC != nil {
		w.value(tagLAPIC, s.LAPIC)
	}
	w.value(tagMSRs, s.MSRs)
	w.value(tagUnread, s.Unread)
	return w.b, w.err
}

// UnmarshalBinary implements encoding.BinaryUnmarshaler. Errors: ErrEncoding.
func (s *VCPUState) UnmarshalBinary(b []byte) error {
	var out VCPUState
	err := readState(b, magicVCPU, func(tag uint32, b []byte) (err error) {
		switch tag {
		case tagCPUID:
			out.CPUID, err = readList[CPUIDEntry](b)
		case tagTSC:
			err = readValue(b, &out.TSCKHz)
		case tagRegs:
			err = readValue(b, &out.Regs)
		case tagSregs:
			err = readValue(b, &out.Sregs)
		case tagXCR0:
			err = readValue(b, &out.XCR0)
		case tagXSave:
			out.XSave = append([]byte(nil), b...)
		case tagDebug:
			err = readValue(b, &out.Debug)
		case tagEvents:
			err = readValue(b, &out.Events)
		case tagMP:
			err = readValue(b, &out.MP)
		case tagLAPIC:
			out.LAPIC = new([1024]byte)
			err = readValue(b, out.LAPIC)
		case tagMSRs:
			out.MSRs, err = readList[MSR](b)
		case tagUnread:
			out.Unread, err = readList[uint32](b)
		}
		return err
	})
	if err == nil {
		*s = out
	}
	return err
}

type stateWriter struct {
	b   []byte
	err error
}

func newStateWriter(magic uint32) *stateWriter {
	w := &stateWriter{b: binary.LittleEndian.AppendUint32(nil, magic)}
	w.b = binary.LittleEndian.AppendUint32(w.b, stateVersion)
	return w
}

func (w *stateWriter) section(tag uint32, b []byte, err error) {
	w.err = errors.Join(w.err, err)
	w.b = binary.LittleEndian.AppendUint32(w.b, tag)
	w.b = binary.LittleEndian.AppendUint32(w.b, uint32(len(b)))
	w.b = append(w.b, b...)
}

func (w *stateWriter) value(tag uint32, x any) {
	b, err := binary.Append(nil, binary.LittleEndian, x)
	w.section(tag, b, err)
}

// readState calls each with every section.
func readState(b []byte, magic uint32, each func(tag uint32, b []byte) error) error {
	if len(b) < 8 || binary.LittleEndian.Uint32(b) != magic {
		return fmt.Errorf("kvm: %w: %d bytes that do not begin with %#x", ErrEncoding, len(b), magic)
	}
	if v := binary.LittleEndian.Uint32(b[4:]); v != stateVersion {
		return fmt.Errorf("kvm: %w: version %d, this package reads %d", ErrEncoding, v, stateVersion)
	}
	for b = b[8:]; len(b) > 0; {
		if len(b) < 8 {
			return fmt.Errorf("kvm: %w: %d bytes after the last section", ErrEncoding, len(b))
		}
		tag, n := binary.LittleEndian.Uint32(b), uint64(binary.LittleEndian.Uint32(b[4:]))
		if b = b[8:]; n > uint64(len(b)) {
			return fmt.Errorf("kvm: %w: section %d of %d bytes, %d are left", ErrEncoding, tag, n, len(b))
		}
		if err := each(tag, b[:n]); err != nil {
			return fmt.Errorf("section %d: %w", tag, err)
		}
		b = b[n:]
	}
	return nil
}

// readValue decodes a value that takes all of b.
func readValue(b []byte, x any) error {
	if n, err := binary.Decode(b, binary.LittleEndian, x); err != nil || n != len(b) {
		return fmt.Errorf("%w: %d bytes for a %T of %d", ErrEncoding, len(b), x, binary.Size(x))
	}
	return nil
}

// readList decodes as many values as b holds.
func readList[T any](b []byte) ([]T, error) {
	var one T
	size := binary.Size(one)
	if len(b)%size != 0 {
		return nil, fmt.Errorf("%w: %d bytes for elements of %d", ErrEncoding, len(b), size)
	}
	if len(b) == 0 {
		return nil, nil
	}
	out := make([]T, len(b)/size)
	_, err := binary.Decode(b, binary.LittleEndian, out)
	return out, err
}
