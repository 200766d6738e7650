package devices

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
)

// port is a serial port with what came out of it and its line.
type port struct {
	*Serial
	t      *testing.T
	out    bytes.Buffer
	isHigh bool
	edges  int
}

func newPort(t *testing.T) *port {
	p := &port{t: t}
	p.Serial = NewSerial(&p.out, func(isHigh bool) error {
		if isHigh && !p.isHigh {
			p.edges++
		}
		p.isHigh = isHigh
		return nil
	})
	return p
}

func (p *port) get(reg uint16) byte {
	p.t.Helper()
	v, err := p.Read(reg)
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

func (p *port) put(reg uint16, v byte) {
	p.t.Helper()
	if err := p.Write(reg, v); err != nil {
		p.t.Fatal(err)
	}
}

func TestSerialSendsAndReceives(t *testing.T) {
	p := newPort(t)
	for _, c := range []byte("out") {
		p.put(regData, c)
	}
	if p.out.String() != "out" || p.isHigh {
		t.Errorf("sent %q, line %v", &p.out, p.isHigh)
	}
	if err := p.Feed([]byte("in")); err != nil {
		t.Fatal(err)
	}
	if p.isHigh {
		t.Error("an interrupt that nobody enabled")
	}
	p.put(regIER, ierReceive)
	var got []byte
	for p.get(regLSR)&lsrReady != 0 {
		if !p.isHigh || p.get(regIIR) != iirReceive {
			t.Error("no interrupt with input waiting")
		}
		got = append(got, p.get(regData))
	}
	if string(got) != "in" || p.isHigh || p.get(regIIR) != iirNone || !p.WasRead() {
		t.Errorf("received %q, line %v", got, p.isHigh)
	}
}

// TestSerialTellsOfAnEmptyTransmitter: once for each byte, and once when asked to.
func TestSerialTellsOfAnEmptyTransmitter(t *testing.T) {
	p := newPort(t)
	p.put(regIER, ierTransmit)
	for i := range 3 {
		if !p.isHigh || p.get(regIIR) != iirTransmit || p.isHigh || p.get(regIIR) != iirNone {
			t.Fatalf("byte %d: the line does not follow", i)
		}
		p.put(regData, 'x')
	}
	if p.edges != 4 {
		t.Errorf("%d edges, want 4", p.edges)
	}
}

// TestSerialPassesTheProbe is what Linux does to find a 16550A.
func TestSerialPassesTheProbe(t *testing.T) {
	p := newPort(t)
	p.put(regIER, 0)
	if v := p.get(regIER); v&0xf != 0 {
		t.Errorf("IER %#x", v)
	}
	p.put(regIER, 0xf)
	if v := p.get(regIER); v&0xf != 0xf {
		t.Errorf("IER %#x", v)
	}
	p.put(regIER, 0)
	p.put(regMCR, mcrLoop|0xa)
	if v := p.get(regMSR); v&0xf0 != 0x90 {
		t.Errorf("MSR %#x in loop-back mode", v)
	}
	p.put(regData, 'q')
	if v := p.get(regData); v != 'q' || p.out.Len() > 0 {
		t.Errorf("looped %q, sent %q", v, &p.out)
	}
	p.put(regMCR, 0)
	p.put(regIIR, fcrEnable)
	if v := p.get(regIIR); v&iirFIFO != iirFIFO {
		t.Errorf("IIR %#x with the FIFO on", v)
	}
	p.put(regLCR, lcrDivisor|3)
	p.put(0, 1)
	p.put(1, 2)
	if p.get(0) != 1 || p.get(1) != 2 || p.out.Len() > 0 {
		t.Error("the divisor is not kept")
	}
	p.put(regLCR, 3)
	p.put(regScratch, 0x5a)
	if v := p.get(regScratch); v != 0x5a {
		t.Errorf("scratch %#x", v)
	}
}

// TestSerialFeedWaits has more input than the port keeps.
func TestSerialFeedWaits(t *testing.T) {
	p := newPort(t)
	want := strings.Repeat("0123456789", 2000)
	done := make(chan error)
	go func() { done <- p.Feed([]byte(want)) }()
	var got []byte
	for len(got) < len(want) {
		if p.get(regLSR)&lsrReady != 0 {
			got = append(got, p.get(regData))
		}
	}
	if err := <-done; err != nil || string(got) != want {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
	go func() { done <- p.Feed([]byte(want)) }()
	p.Close()
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("Feed = %v after Close", err)
	}
}

func TestPorts(t *testing.T) {
	s := newPort(t)
	p := &Ports{Serial: s.Serial, Now: func() time.Time { return time.Date(2031, 12, 24, 23, 58, 7, 0, time.UTC) }}
	for _, x := range []struct {
		port uint16
		v    byte
		want error
	}{
		{portI8042, i8042PulseReset, ErrReset}, {portI8042, 0xaa, nil}, {portReset, 0x06, ErrReset}, {portReset, 0x02, nil},
		{SerialBase, '!', nil}, {0x80, 1, nil}, {0xffff, 0xfe, nil},
	} {
		if err := p.Out(x.port, x.v); !errors.Is(err, x.want) {
			t.Errorf("out %#x, %#x = %v, want %v", x.v, x.port, err, x.want)
		}
	}
	if s.out.String() != "!" {
		t.Errorf("sent %q", &s.out)
	}
	for reg, want := range map[byte]byte{0: 0x07, 2: 0x58, 4: 0x23, 7: 0x24, 8: 0x12, 9: 0x31, rtcCentury: 0x20, rtcStatusA: 0x26, 0x7f: 0} {
		if err := p.Out(portRTCIndex, reg|0x80); err != nil {
			t.Fatal(err)
		}
		if v, err := p.In(portRTCData); v != want || err != nil {
			t.Errorf("clock register %#x is %#x, want %#x", reg, v, want)
		}
	}
	if v, _ := p.In(0xcfc); v != 0xff {
		t.Errorf("a port that nobody is behind reads %#x", v)
	}
	if v, _ := p.In(portI8042); v != 0 {
		t.Errorf("the keyboard controller reads %#x", v)
	}
}
