package guestmem

// The model of FuzzOps: for each space a slice of pages, each an array of bytes
// of its own as soon as it is written. Nothing is shared that does not have to
// be, and nothing is cached.

// fuzzPage is one mapped page.
type fuzzPage struct {
	prot   Prot
	own    *[page]byte // what a private page was written; nil: as it was mapped
	file   *fuzzObject // of a private page; nil: anonymous
	shared *fuzzObject // nil: private
	index  uint64      // of the file's or object's page

	readOnly bool // never writable
	// locked is what the library says: which areas are is the oracle's to say, and here
	// only what follows (noteLocks).
	locked bool

	dontFork, wipeOnFork, guard, growsDown bool
}

// fuzzObject is the memory of a shared area or a file, by page.
type fuzzObject struct {
	pages map[uint64]*[page]byte
	size  uint64 // in bytes
}

// fuzzFile is a file as it begins.
func fuzzFile(data []byte) *fuzzObject {
	o := &fuzzObject{pages: make(map[uint64]*[page]byte)}
	o.write(data, 0)
	return o
}

// page returns a page to read, nil past the end.
func (o *fuzzObject) page(index uint64) *[page]byte {
	if index >= (o.size+page-1)/page {
		return nil
	}
	if b := o.pages[index]; b != nil {
		return b
	}
	return new([page]byte)
}

func (o *fuzzObject) write(data []byte, off uint64) {
	for n := uint64(0); n < uint64(len(data)); {
		at := off + n
		if o.pages[at/page] == nil {
			o.pages[at/page] = new([page]byte)
		}
		n += uint64(copy(o.pages[at/page][at%page:], data[n:]))
	}
	if len(data) > 0 {
		o.size = max(o.size, off+uint64(len(data)))
	}
}

func (o *fuzzObject) read(n, off uint64) []byte {
	var out []byte
	for ; n > 0 && off < o.size; n, off = n-1, off+1 {
		out = append(out, o.page(off / page)[off%page])
	}
	return out
}

// truncate takes away what lies beyond a size, of the family's private copies too.
func (m *fuzzFamily) truncate(o *fuzzObject, size uint64) {
	if size < o.size {
		for index, b := range o.pages {
			switch {
			case index*page >= size:
				delete(o.pages, index)
			case (index+1)*page > size:
				clear(b[size%page:])
			}
		}
		for _, s := range m.spaces {
			if s == nil {
				continue
			}
			for _, p := range s.pages {
				if p != nil && p.file == o && p.index*page >= size {
					p.own = nil
				}
			}
		}
	}
	o.size = size
}

func (p *fuzzPage) isFresh() bool {
	return p.own == nil && (p.object() == nil || p.object().pages[p.index] == nil)
}

// object is what the page shows.
func (p *fuzzPage) object() *fuzzObject {
	if p.shared != nil {
		return p.shared
	}
	return p.file
}

// bytes returns what the page reads as; nil past the end of its file.
func (p *fuzzPage) bytes() []byte {
	switch {
	case p.own != nil:
		return p.own[:]
	case p.object() != nil:
		if b := p.object().page(p.index); b != nil {
			return b[:]
		}
		return nil
	}
	return make([]byte, page)
}

// writable returns the bytes to write to.
func (p *fuzzPage) writable() []byte {
	b := (*[page]byte)(p.bytes())
	if p.shared != nil {
		p.shared.pages[p.index] = b
	} else if p.own == nil {
		own := *b
		p.own, b = &own, &own
	}
	return b[:]
}

// trouble is what an access meets.
func (p *fuzzPage) trouble(access Access) trouble {
	switch {
	case p == nil:
		return troubleMap
	case access == Execute && p.prot&ProtExec == 0 && p.trouble(Read) != noTrouble: // brought first: see refuseFetch
		return p.trouble(Read)
	case p.guard && (access == Read && p.prot != ProtNone || access == Write && p.prot&ProtWrite != 0 || access == Execute && p.prot&ProtExec != 0):
		return troubleMap
	case access == Read && p.prot == ProtNone, access == Write && p.prot&ProtWrite == 0, access == Execute && p.prot&ProtExec == 0:
		return troubleAccess
	case p.own == nil && p.object() != nil && p.object().page(p.index) == nil:
		return troubleBus
	}
	return noTrouble
}
