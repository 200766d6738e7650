package pager

import "fmt"

// A Takeover is a guest that nobody serves: its descriptor, which pages are
// where, and the states of its pages. Faults wait in the kernel meanwhile, and
// come again once it is served. It ends by Server.TakeOver, Send, or Close.
//
// It is used by one goroutine at a time.
type Takeover struct {
	l     *ledger
	image Identity
	sent  bool // by Send, which was not confirmed
}

// Name returns the guest's name.
func (t *Takeover) Name() string { return t.l.name }

// Image returns the identity of the image that the guest was served from.
func (t *Takeover) Image() Identity { return t.image }

// Regions returns what the guest's regions were when it was added.
func (t *Takeover) Regions() []Region {
	var out []Region
	for _, r := range t.l.regions {
		out = append(out, r.Region)
	}
	return out
}

// Close gives the descriptor up, and with it the guest, which cannot run any
// more: the kernel would answer its faults with zeroes.
func (t *Takeover) Close() error {
	if t.l != nil {
		t.l.close()
		t.l = nil
	}
	return nil
}

// TakeOver goes on serving a guest. o is as for Add, without FD, Regions and
// Ledger, which t has. States that the one before had not recorded do no harm: a page
// that is there already answers so, and what it had read from the kernel and
// not yet acted on is acted on first.
//
// Errors: ErrWrongImage, ErrBeyondSource, ErrInvalid, ErrClosed. After an error
// t is as before.
func (s *Server) TakeOver(t *Takeover, o GuestOptions) (*Guest, error) {
	if t.l == nil || t.sent || o.FD != nil || o.Regions != nil || o.Ledger != nil {
		return nil, &Error{Op: "take over", Guest: o.Name, Err: ErrInvalid}
	}
	o.setDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Image != t.image {
		return nil, &Error{Op: "take over", Guest: o.Name, Err: fmt.Errorf("%w: %v, not %v", ErrWrongImage, t.image, o.Image)}
	}
	if _, err := checkRegions(t.Regions(), o.Source.Size()); err != nil {
		return nil, &Error{Op: "take over", Guest: o.Name, Err: err}
	}
	if o.Name == "" {
		o.Name = t.l.name
	}
	g, err := s.serve(t.l, o)
	if err != nil {
		return nil, err
	}
	t.l = nil
	return g, nil
}
