package snapfile

import (
	"context"
	"fmt"
	"hash/crc32"
	"runtime"
	"sync"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Verify reads every byte of the file and of its parents and checks it: headers,
// tables and states once more, each chunk also by decoding it, and that
// everything in between is zero. progress, if not nil, is told how many bytes of
// chunks were checked, of how many; by one goroutine at a time.
//
// Errors: the first that is found, which names its file: ErrDamaged, ErrTruncated,
// ErrCodec; ErrClosed; that of ctx; those of reading.
func (f *File) Verify(ctx context.Context, progress func(done, total uint64)) error {
	return fileError("verify", f.path, f.pass(ctx, nil, RestoreOptions{Progress: progress}))
}

// A Writer is guest memory to restore to: *guestmem.Memory is one. It is called by
// several goroutines at once, for ranges that do not overlap, and does not keep p.
type Writer interface {
	WriteAt(p []byte, gpa addr.GPA) (int, error)
}

// RestoreOptions are those of Restore.
type RestoreOptions struct {
	// Workers is how many goroutines read, check and write. 0 means GOMAXPROCS,
	// and at least 2. Each holds up to 1 MiB, or one chunk if that is more, and as
	// much again with a codec.
	Workers int
	// Progress is Verify's.
	Progress func(done, total uint64)
}

// Restore writes all memory that is not zero to w, each page once, in runs and in
// any order. What w held before has to be zero where nothing is written to.
//
// It verifies as Verify does, all of the chain: a guest may run when it has
// returned nil, and not before. After an error w holds part of the memory.
//
// Errors: those of Verify; that of w.
func (f *File) Restore(ctx context.Context, w Writer, o RestoreOptions) error {
	if w == nil || o.Workers < 0 {
		return fileError("restore", f.path, invalidf("%d workers, writer %v", o.Workers, w))
	}
	return fileError("restore", f.path, f.pass(ctx, w, o))
}

// pass is one reading of all files of a chain.
type pass struct {
	w       Writer // nil: to check is all
	workers int
	total   uint64

	mu       sync.Mutex
	progress func(done, total uint64) // mu
	done     uint64                   // mu
}

func (p *pass) add(n uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += n
	if p.progress != nil {
		p.progress(p.done, p.total)
	}
}

func (f *File) pass(ctx context.Context, w Writer, o RestoreOptions) error {
	p := &pass{w: w, workers: o.Workers, progress: o.Progress}
	if p.workers == 0 {
		p.workers = max(2, runtime.GOMAXPROCS(0))
	}
	var chain []*File // the newest first
	for x := f; x != nil; x = x.parent {
		chain = append(chain, x)
		p.total += x.h.storedBytes
	}
	for i, x := range chain {
		err := x.checkRest(ctx)
		if err == nil {
			err = x.scan(ctx, p, chain[:i])
		}
		if err == nil {
			err = x.checkGaps(ctx)
		}
		if err != nil {
			return fileError("verify", x.path, err)
		}
	}
	p.add(0) // of files without any data
	return nil
}

// checkRest checks what Open has read: it may have changed.
func (f *File) checkRest(ctx context.Context) error {
	if f.closed.Load() {
		return ErrClosed
	}
	size, err := f.src.length()
	if err != nil {
		return err
	}
	page := make([]byte, min(size, headerSize))
	if _, err := readFull(f.src, page, 0); err != nil {
		return err
	}
	_, id, err := decodeHeader(page, size)
	if err != nil {
		return err
	}
	if id != f.id {
		return damagedf("it has become another file since it was opened")
	}
	if err := f.checkSum(ctx, "state", f.h.stateOff, f.h.stateLen, f.h.stateCRC); err != nil {
		return err
	}
	return f.checkSum(ctx, "tables", f.h.tablesOff, f.h.tablesLen(), f.h.tablesCRC)
}

func (f *File) checkSum(ctx context.Context, what string, off, n uint64, want uint32) error {
	got := uint32(0)
	err := f.eachPiece(ctx, off, n, func(p []byte, _ uint64) error {
		got = crc32.Update(got, castagnoli, p)
		return nil
	})
	if err == nil && got != want {
		err = damagedf("the checksum of the %s is %#x and should be %#x", what, got, want)
	}
	return err
}

// eachPiece reads part of the file.
func (f *File) eachPiece(ctx context.Context, off, n uint64, fn func(p []byte, off uint64) error) error {
	buf := make([]byte, min(n, batchBytes))
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(n, uint64(len(buf)))]
		if _, err := readFull(f.src, p, off); err != nil {
			return err
		}
		if err := fn(p, off); err != nil {
			return err
		}
		off, n = off+uint64(len(p)), n-uint64(len(p))
	}
	return nil
}

// checkGaps checks that between the chunks of a raw file is nothing. Those of a
// packed one follow each other.
func (f *File) checkGaps(ctx context.Context) error {
	if !f.h.raw() {
		return nil
	}
	i := 0
	return f.src.eachData(headerSize, f.h.stateOff-headerSize, func(off, n uint64) error {
		for n > 0 {
			for i < len(f.chunks) && f.chunks[i].off+uint64(f.chunks[i].stored) <= off {
				i++
			}
			gap := n
			if i < len(f.chunks) {
				if c := &f.chunks[i]; c.off <= off {
					skip := min(n, c.off+uint64(c.stored)-off)
					off, n = off+skip, n-skip
					continue
				} else {
					gap = min(n, c.off-off)
				}
			}
			if err := f.eachPiece(ctx, off, gap, nothing); err != nil {
				return err
			}
			off, n = off+gap, n-gap
		}
		return ctx.Err()
	})
}

func nothing(p []byte, off uint64) error {
	for i := 0; i < len(p); i += len(zeroPage) {
		if q := p[i:min(i+len(zeroPage), len(p))]; !isZero(q) {
			return damagedf("there is something at %#x, where no chunk is", off+uint64(i))
		}
	}
	return nil
}

// unit is a piece of work: some chunks, and the extents in them.
type unit struct {
	region  int
	chunks  []chunk
	extents []extent // of zeroes too
}

// scan checks every chunk of one file, and writes what of it no newer file has
// something else for.
func (f *File) scan(ctx context.Context, p *pass, newer []*File) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan unit)
	var workers sync.WaitGroup
	for range p.workers {
		workers.Go(func() {
			s := &scanner{f: f, p: p, newer: newer}
			for u := range work {
				if ctx.Err() != nil {
					continue
				}
				if err := s.unit(u); err != nil {
					cancel(err)
				}
			}
		})
	}
	f.eachUnit(func(u unit) bool {
		select {
		case work <- u:
			return true
		case <-ctx.Done():
			return false
		}
	})
	close(work)
	workers.Wait()
	return context.Cause(ctx)
}

// eachUnit cuts the file into units.
func (f *File) eachUnit(yield func(unit) bool) {
	next := 0 // chunk
	for region := range f.regions {
		t := &f.regions[region]
		end := next + int(t.nChunks)
		for e := 0; next < end; {
			u, size := unit{region: region}, uint64(0)
			first := next
			for next < end && (size == 0 || size+f.chunks[next].bytes() <= batchBytes) {
				size += f.chunks[next].bytes()
				next++
			}
			u.chunks = f.chunks[first:next]
			from := e
			for e < len(t.extents) && (t.extents[e].chunk == zeroes || int(t.extents[e].chunk) < next) {
				e++
			}
			u.extents = t.extents[from:e]
			if !yield(u) {
				return
			}
		}
	}
}

// scanner is a worker of a scan.
type scanner struct {
	f     *File
	p     *pass
	newer []*File

	in, out []byte
}

func (s *scanner) unit(u unit) error {
	data, err := s.read(u)
	if err != nil {
		return err
	}
	if s.p.w != nil {
		if err := s.write(u, data); err != nil {
			return err
		}
	}
	n := uint64(0)
	for i := range u.chunks {
		n += uint64(u.chunks[i].stored)
	}
	s.p.add(n)
	return nil
}

// grow returns a buffer of n bytes.
func grow(b []byte, n uint64) []byte {
	if uint64(cap(b)) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// read returns the pages of the chunks, one behind the other, checked.
func (s *scanner) read(u unit) ([]byte, error) {
	stored, size := uint64(0), uint64(0)
	for i := range u.chunks {
		stored, size = stored+uint64(u.chunks[i].stored), size+u.chunks[i].bytes()
	}
	s.in = grow(s.in, stored)
	in := s.in
	for i := 0; i < len(u.chunks); { // neighbours in one read
		first := u.chunks[i]
		n := uint64(0)
		for ; i < len(u.chunks) && u.chunks[i].off == first.off+n; i++ {
			n += uint64(u.chunks[i].stored)
		}
		if err := s.f.readStored(&first, in[:n]); err != nil {
			return nil, err
		}
		in = in[n:]
	}
	in = s.in
	if s.f.codec == nil {
		for i := range u.chunks {
			c := &u.chunks[i]
			if err := c.check(in[:c.stored]); err != nil {
				return nil, err
			}
			in = in[c.stored:]
		}
		return s.in, nil
	}
	s.out = grow(s.out, size)
	out := s.out
	for i := range u.chunks {
		c := &u.chunks[i]
		if err := s.f.unpack(c, in[:c.stored], out[:c.bytes()]); err != nil {
			return nil, err
		}
		in, out = in[c.stored:], out[c.bytes():]
	}
	return s.out, nil
}

// write writes what is to be seen of the extents of a unit, with neighbours in
// one go. data is the pages of its extents, one behind the other.
func (s *scanner) write(u unit, data []byte) error {
	t := &s.f.regions[u.region]
	var run span
	var bytes []byte // of run: a part of data
	flush := func() error {
		if run.n == 0 {
			return nil
		}
		gpa, p := t.gpaOf(run.first), bytes[:run.bytes()]
		n, err := s.p.w.WriteAt(p, gpa)
		if err == nil && n != len(p) {
			err = fmt.Errorf("%d of %d bytes", n, len(p))
		}
		if err != nil {
			return fmt.Errorf("write memory at %v: %w", gpa, err)
		}
		return nil
	}
	for i := range u.extents {
		e := &u.extents[i]
		if e.chunk == zeroes {
			continue
		}
		err := s.visible(u.region, span{e.first, uint64(e.n)}, s.newer, func(v span) error {
			p := data[(v.first-e.first)*addr.PageSize:]
			if run.n > 0 && run.end() == v.first && uint64(cap(bytes))-run.bytes() == uint64(cap(p)) {
				run.n += v.n
				return nil
			}
			err := flush()
			run, bytes = v, p
			return err
		})
		if err != nil {
			return err
		}
		data = data[uint64(e.n)*addr.PageSize:]
	}
	return flush()
}

// visible calls fn for what of a run no newer file has something else for. The
// newest stands first.
func (s *scanner) visible(region int, r span, newer []*File, fn func(span) error) error {
	if len(newer) == 0 {
		return fn(r)
	}
	t := &newer[0].regions[region]
	for i := t.from(r.first); r.n > 0; i++ {
		gap, covered := r.n, uint64(0)
		if i < len(t.extents) {
			e := &t.extents[i]
			gap = min(r.n, max(e.first, r.first)-r.first)
			covered = min(r.n-gap, e.end()-(r.first+gap))
		}
		if gap > 0 {
			if err := s.visible(region, span{r.first, gap}, newer[1:], fn); err != nil {
				return err
			}
		}
		r.first, r.n = r.first+gap+covered, r.n-gap-covered
	}
	return nil
}
