package devices

import (
	"errors"
	"io"
	"sync"
)

// Ports and the interrupt of the first serial port.
const (
	SerialBase  = 0x3f8
	SerialPorts = 8
	SerialIRQ   = 4
)

// Registers of a 16550A.
const (
	regData = iota // low half of the divisor while lcrDivisor is set
	regIER         // high half of the divisor
	regIIR         // written: FCR
	regLCR
	regMCR
	regLSR
	regMSR
	regScratch

	ierReceive  = 1 << 0
	ierTransmit = 1 << 1
	iirNone     = 1
	iirTransmit = 2
	iirReceive  = 4
	iirFIFO     = 0xc0
	fcrEnable   = 1 << 0
	fcrClear    = 1 << 1
	lcrDivisor  = 1 << 7
	mcrLoop     = 1 << 4
	lsrReady    = 1 << 0
	lsrEmpty    = 1<<5 | 1<<6
	msrPresent  = 1<<4 | 1<<5 | 1<<7 // clear to send, data set ready, carrier

	serialFIFO = 4096
)

// Serial is a 16550A whose transmitter is always ready.
type Serial struct {
	out io.Writer
	irq func(isHigh bool) error

	mu       sync.Mutex
	in       []byte // received, not yet read; mu
	ier, fcr byte   // mu
	lcr, mcr byte   // mu
	scratch  byte   // mu
	divisor  [2]byte
	// isSent says that the transmitter became empty and nobody was told; mu
	isSent bool
	isHigh bool // the interrupt line; mu
	wasIn  bool // the guest has read a byte that was fed; mu
	room   sync.Cond
	closed bool // mu
}

// NewSerial returns a port that writes to out, and drives its line by irq.
func NewSerial(out io.Writer, irq func(isHigh bool) error) *Serial {
	s := &Serial{out: out, irq: irq, lcr: 3}
	s.room.L = &s.mu
	return s
}

// ErrClosed says that the port is closed.
var ErrClosed = errors.New("serial port is closed")

// Feed gives the guest input; it waits while the guest has much of it unread.
// Errors: ErrClosed; that of the line.
func (s *Serial) Feed(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(b) > 0 {
		for len(s.in) >= serialFIFO && !s.closed {
			s.room.Wait()
		}
		if s.closed {
			return ErrClosed
		}
		n := min(len(b), serialFIFO-len(s.in))
		s.in, b = append(s.in, b[:n]...), b[n:]
		if err := s.update(); err != nil {
			return err
		}
	}
	return nil
}

// Close ends a Feed that waits.
func (s *Serial) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.room.Broadcast()
}

// WasRead reports whether the guest has read any input.
func (s *Serial) WasRead() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wasIn
}

// Write is an out to register reg.
func (s *Serial) Write(reg uint16, v byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case reg <= regIER && s.lcr&lcrDivisor != 0:
		s.divisor[reg] = v
	case reg == regData:
		if err := s.send(v); err != nil {
			return err
		}
	case reg == regIER:
		// Who asks to be told of an empty transmitter is told at once.
		s.isSent = s.isSent || v&^s.ier&ierTransmit != 0
		s.ier = v & 0xf
	case reg == regIIR:
		s.fcr = v
		if v&fcrClear != 0 {
			s.in = s.in[:0]
			s.room.Broadcast()
		}
	case reg == regLCR:
		s.lcr = v
	case reg == regMCR:
		s.mcr = v & 0x1f
	case reg == regScratch:
		s.scratch = v
	}
	return s.update()
}

// send transmits a byte: to the outside, or in loop-back mode to itself.
func (s *Serial) send(v byte) error {
	s.isSent = true
	if s.mcr&mcrLoop != 0 {
		if len(s.in) < serialFIFO {
			s.in = append(s.in, v)
		}
		return nil
	}
	_, err := s.out.Write([]byte{v})
	return err
}

// Read is an in from register reg.
func (s *Serial) Read(reg uint16) (v byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case reg <= regIER && s.lcr&lcrDivisor != 0:
		return s.divisor[reg], nil
	case reg == regData:
		if len(s.in) > 0 {
			v = s.in[0]
			s.in = append(s.in[:0], s.in[1:]...)
			s.wasIn = s.wasIn || s.mcr&mcrLoop == 0
			s.room.Broadcast()
		}
	case reg == regIER:
		v = s.ier
	case reg == regIIR:
		v = s.identify()
		if v == iirTransmit {
			s.isSent = false
		}
		if s.fcr&fcrEnable != 0 {
			v |= iirFIFO
		}
	case reg == regLCR:
		v = s.lcr
	case reg == regMCR:
		v = s.mcr
	case reg == regLSR:
		if v = lsrEmpty; len(s.in) > 0 {
			v |= lsrReady
		}
	case reg == regMSR:
		if v = msrPresent; s.mcr&mcrLoop != 0 {
			v = s.looped()
		}
	case reg == regScratch:
		v = s.scratch
	}
	return v, s.update()
}

// looped returns the modem's lines in loop-back mode: RTS, DTR, OUT1 and OUT2 as CTS,
// DSR, RI and DCD.
func (s *Serial) looped() byte {
	return s.mcr&2<<3 | s.mcr&1<<5 | s.mcr&4<<4 | s.mcr&8<<4
}

// identify says which interrupt is pending.
func (s *Serial) identify() byte {
	switch {
	case s.ier&ierReceive != 0 && len(s.in) > 0:
		return iirReceive
	case s.ier&ierTransmit != 0 && s.isSent:
		return iirTransmit
	}
	return iirNone
}

// update drives the line.
func (s *Serial) update() error {
	isHigh := s.identify() != iirNone
	if isHigh == s.isHigh {
		return nil
	}
	if err := s.irq(isHigh); err != nil {
		return err
	}
	s.isHigh = isHigh
	return nil
}
