//go:build amd64 || arm64

package floor

import (
	"bytes"
	"errors"
	"time"

	"github.com/guestmm/guestmm/bench/internal/workload"
	"github.com/guestmm/guestmm/uffd/pager"
)

// image is what guests are restored from.
func image(size uint64) []byte { return bytes.Repeat([]byte{7}, int(size)) }

// attach has the server serve a guest from bytes at hand.
func (g *guest) attach(s *pager.Server, from []byte, fill pager.Fill) (*pager.Guest, error) {
	src, err := pager.BytesSource(from[:g.size])
	if err != nil {
		return nil, err
	}
	return s.Add(pager.GuestOptions{
		FD:      g.fd,
		Regions: []pager.Region{{Start: g.base, Size: g.size}},
		Source:  src,
		Fill:    fill,
		// The guest ends with what serves it: finish says why.
		Fail: func(error) { g.cmd.Process.Kill() },
	})
}

// restored has a guest touch memory that is not there yet, while the rest is filled
// in the background. The time is from before anybody serves.
func (p *Program) restored(mode string, pages int) (fig workload.Figure, err error) {
	g, err := p.startGuest(mode, pages)
	if err != nil {
		return fig, err
	}
	from := image(g.size)
	s := pager.NewServer(pager.Options{})
	begin := time.Now()
	served, err := g.attach(s, from, pager.Fill{Background: pager.FillAll})
	if err == nil {
		err = g.start()
	}
	ahead := time.Since(begin)
	if fig, err = g.finish(err); err == nil {
		fig.PerOp += float64(ahead.Nanoseconds()) / float64(fig.Ops)
	}
	if served != nil {
		err = errors.Join(err, served.Close())
	}
	return fig, errors.Join(err, s.Close())
}

// manyGuests has them fault all at once, at one server. The time is from the first
// one's start to the last one's end, for one page of all.
func (p *Program) manyGuests(n int) (fig workload.Figure, err error) {
	s := pager.NewServer(pager.Options{})
	from := image(guestPages * pageSize)
	var all []*guest
	var served []*pager.Guest
	for range n {
		var g *guest
		if g, err = p.startGuest("missing", guestPages); err != nil {
			break
		}
		all = append(all, g)
		var sg *pager.Guest
		if sg, err = g.attach(s, from, pager.Fill{}); err != nil {
			break
		}
		served = append(served, sg)
	}
	begin := time.Now()
	for _, g := range all {
		if err == nil {
			err = g.start()
		}
	}
	for _, g := range all {
		if _, finishErr := g.finish(err); err == nil {
			err = finishErr
		}
	}
	took := time.Since(begin)
	for _, sg := range served {
		err = errors.Join(err, sg.Close())
	}
	return figure(took, n*guestPages), errors.Join(err, s.Close())
}
