// Package progress shows on a terminal how far the background fill of all
// guests has come, together with the log, which goes to the same terminal.
//
// Bar.mu guards everything, writes to the terminal among it; nothing else is
// taken while it is held. All methods are safe for concurrent use.
package progress

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

const (
	barWidth = 30
	redraw   = 100 * time.Millisecond
)

type share struct{ done, total uint64 }

// A Bar is one line that shows the sum of all guests that are being filled.
type Bar struct {
	out io.Writer

	mu     sync.Mutex
	guests map[string]share         // guarded by mu
	bar    *progressbar.ProgressBar // nil while nothing is filled; guarded by mu
	drawn  time.Time                // guarded by mu
}

// New makes a Bar on a terminal.
func New(out io.Writer) *Bar { return &Bar{out: out, guests: make(map[string]share)} }

// Update says how far one guest is, in bytes.
func (b *Bar) Update(guest string, done, total uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, known := b.guests[guest]
	b.guests[guest] = share{done, total}
	if !known || time.Since(b.drawn) >= redraw {
		b.draw()
	}
}

// Remove forgets a guest: it is complete, or has ended.
func (b *Bar) Remove(guest string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.guests[guest]; !ok {
		return
	}
	delete(b.guests, guest)
	if len(b.guests) > 0 {
		b.draw()
		return
	}
	if b.bar != nil {
		_ = b.bar.Clear()
		b.bar = nil
	}
}

// draw shows the sum.
//
// Preconditions:
//   - b.mu is held
//   - there is a guest, of a page or more
func (b *Bar) draw() {
	var sum share
	for _, s := range b.guests {
		sum.done, sum.total = sum.done+s.done, sum.total+s.total
	}
	if b.bar == nil {
		b.bar = progressbar.NewOptions64(int64(sum.total), progressbar.OptionSetWriter(b.out),
			progressbar.OptionSetWidth(barWidth), progressbar.OptionShowBytes(true),
			progressbar.OptionSetElapsedTime(false), progressbar.OptionSetPredictTime(false))
	}
	b.bar.ChangeMax64(int64(sum.total))
	b.bar.Describe(fmt.Sprintf("filling %d guests", len(b.guests)))
	// A terminal that has gone is no reason to stop serving. A bar that was full
	// once does not move again, and the end is Remove's to tell.
	_ = b.bar.Set64(int64(min(sum.done, sum.total-1)))
	b.drawn = time.Now()
}

// Write writes lines of the log above the bar.
func (b *Bar) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bar == nil {
		return b.out.Write(p)
	}
	_ = b.bar.Clear()
	n, err := b.out.Write(p)
	b.draw()
	return n, err
}
