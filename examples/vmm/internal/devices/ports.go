package devices

import (
	"errors"
	"sync"
	"time"
)

// ErrReset says that the guest has reset the machine.
var ErrReset = errors.New("the guest has reset the machine")

const (
	portI8042Data   = 0x60
	portI8042       = 0x64
	portRTCIndex    = 0x70
	portRTCData     = 0x71
	portReset       = 0xcf9
	i8042PulseReset = 0xfe
	resetCPU        = 1 << 2

	rtcStatusA = 0xa
	rtcStatusB = 0xb
	rtcStatusD = 0xd
	rtcCentury = 0x32
)

// Ports are the ports of a PC that the kernel's KVM leaves to the VMM. What is
// behind none reads as all ones.
type Ports struct {
	Serial *Serial
	Now    func() time.Time

	mu    sync.Mutex
	index byte // of the clock's register; mu
}

// Out is one byte out. Errors: ErrReset; those of the console.
func (p *Ports) Out(port uint16, v byte) error {
	switch {
	case port-SerialBase < SerialPorts:
		return p.Serial.Write(port-SerialBase, v)
	case port == portI8042 && v == i8042PulseReset, port == portReset && v&resetCPU != 0:
		return ErrReset
	case port == portRTCIndex:
		p.mu.Lock()
		defer p.mu.Unlock()
		p.index = v & 0x7f
	}
	return nil
}

// In is one byte in.
func (p *Ports) In(port uint16) (byte, error) {
	switch {
	case port-SerialBase < SerialPorts:
		return p.Serial.Read(port - SerialBase)
	case port == portI8042, port == portI8042Data:
		return 0, nil // no key, and ready for a command
	case port == portRTCIndex, port == portRTCData:
		p.mu.Lock()
		defer p.mu.Unlock()
		if port == portRTCIndex {
			return p.index, nil
		}
		return clock(p.index, p.Now().UTC()), nil
	}
	return 0xff, nil
}

// clock returns a register of the MC146818, in BCD and 24 hours.
func clock(reg byte, t time.Time) byte {
	bcd := func(n int) byte { return byte(n/10<<4 | n%10) }
	switch reg {
	case 0:
		return bcd(t.Second())
	case 2:
		return bcd(t.Minute())
	case 4:
		return bcd(t.Hour())
	case 6:
		return byte(t.Weekday()) + 1
	case 7:
		return bcd(t.Day())
	case 8:
		return bcd(int(t.Month()))
	case 9:
		return bcd(t.Year() % 100)
	case rtcCentury:
		return bcd(t.Year() / 100)
	case rtcStatusA:
		return 0x26 // no update in progress
	case rtcStatusB:
		return 0x02 // 24 hours, BCD
	case rtcStatusD:
		return 0x80 // the battery is good
	}
	return 0
}
