//go:build linux && amd64

package main

import (
	"io"
	"os"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress shows on a terminal how far a run is. Elsewhere it shows nothing. A
// nil bar is none.
type progress struct {
	out io.Writer // nil: not a terminal
	bar *progressbar.ProgressBar
}

func newProgress(stderr io.Writer) *progress {
	if f, ok := stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return &progress{out: f}
	}
	return &progress{}
}

// step begins a bar of n parts.
func (p *progress) step(name string, n int) {
	p.done()
	if p.out != nil {
		p.bar = progressbar.NewOptions(n, progressbar.OptionSetWriter(p.out), progressbar.OptionSetDescription(name),
			progressbar.OptionClearOnFinish(), progressbar.OptionSetWidth(30), progressbar.OptionSetPredictTime(false), progressbar.OptionSetRenderBlankState(true))
	}
}

// add ends a part; what, if not empty, is the next one. Safe for concurrent use
// once the bar is there.
func (p *progress) add(what string) {
	if p.bar == nil {
		return
	}
	if what != "" {
		p.bar.Describe(what)
	}
	_ = p.bar.Add(1)
}

// done takes the bar away.
func (p *progress) done() {
	if p.bar != nil {
		_ = p.bar.Finish()
		p.bar = nil
	}
}

// bytes begins a bar of bytes, and returns what moves it; nil where there is none to
// be seen.
func (p *progress) bytes(name string) func(done, total uint64) {
	if p.out == nil {
		return nil
	}
	p.step(name, 100)
	bar := p.bar
	return func(done, total uint64) {
		if total > 0 {
			_ = bar.Set(int(done * 100 / total))
		}
	}
}
