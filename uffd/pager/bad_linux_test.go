package pager

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

func TestRegionsAreChecked(t *testing.T) {
	const image = 1 << 20
	ok := Region{Start: base, Size: image / 2}
	at := func(off uint64, f func(*Region)) Region {
		r := ok
		r.Start += addr.HVA(off)
		if f != nil {
			f(&r)
		}
		return r
	}
	for name, c := range map[string]struct {
		in   []Region
		want error
	}{
		"one":              {[]Region{ok}, nil},
		"adjacent":         {[]Region{at(image/2, nil), ok}, nil},
		"huge":             {[]Region{at(0, func(r *Region) { r.PageSize = hugePage })}, ErrInvalid},
		"none":             {nil, ErrInvalid},
		"too many":         {make([]Region, MaxRegions+1), ErrInvalid},
		"empty":            {[]Region{at(0, func(r *Region) { r.Size = 0 })}, ErrInvalid},
		"address":          {[]Region{at(1, nil)}, ErrInvalid},
		"size":             {[]Region{at(0, func(r *Region) { r.Size++ })}, ErrInvalid},
		"offset":           {[]Region{at(0, func(r *Region) { r.Offset = 5 })}, ErrInvalid},
		"page size":        {[]Region{at(0, func(r *Region) { r.PageSize = 8192 })}, ErrInvalid},
		"address overflow": {[]Region{at(0, func(r *Region) { r.Start = math.MaxUint64 &^ 4095; r.Size = 8192 })}, ErrInvalid},
		"null":             {[]Region{at(0, func(r *Region) { r.Start = 0 })}, ErrInvalid},
		"offset overflow":  {[]Region{at(0, func(r *Region) { r.Offset = math.MaxUint64 &^ 4095 })}, ErrInvalid},
		"enormous":         {[]Region{at(0, func(r *Region) { r.Size = 1 << 62 })}, ErrBeyondSource},
		"beyond the image": {[]Region{at(0, func(r *Region) { r.Offset = image/2 + smallPage })}, ErrBeyondSource},
		"shown too often": {slices.Collect(func(yield func(Region) bool) {
			for i := range uint64(20) {
				if !yield(at(i*image, nil)) {
					return
				}
			}
		}), ErrInvalid},
		"overlap":   {[]Region{ok, at(image/2-smallPage, nil)}, ErrOverlap},
		"twice":     {[]Region{ok, ok}, ErrOverlap},
		"file mode": {[]Region{at(0, func(r *Region) { r.Mode = ModeFile })}, ErrInvalid},
		"no cache":  {[]Region{at(0, func(r *Region) { r.Mode = ModeContinue })}, ErrInvalid},
		"arming":    {[]Region{at(0, func(r *Region) { r.Arming = 9 })}, ErrInvalid},
	} {
		if _, err := checkRegions(c.in, image); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// TestLayoutAgainstModel moves and unmaps at random, and holds every address
// against a map of pages.
func TestLayoutAgainstModel(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	const n = 24
	for range 300 {
		l := newLedger("", nil, []Region{
			{Start: base, Size: n * smallPage, PageSize: smallPage},
			{Start: base + 64*smallPage, Size: n * smallPage, PageSize: smallPage},
		})
		model := map[addr.HVA]pageRef{}
		for _, r := range l.regions {
			for i := range n {
				model[r.Start+addr.HVA(i)*smallPage] = pageRef{r, i}
			}
		}
		for range 8 {
			from, length := page(rnd.IntN(100)), addr.HVA(1+rnd.IntN(10))*smallPage
			if rnd.IntN(2) == 0 {
				l.layout.Store(l.layout.Load().without(from, from+length))
				for a := from; a < from+length; a += smallPage {
					delete(model, a)
				}
			} else {
				to := page(rnd.IntN(100))
				if to < from+length && from < to+length {
					continue
				}
				l.layout.Store(l.layout.Load().moved(from, to, uint64(length)))
				for off := addr.HVA(0); off < length; off += smallPage {
					ref, ok := model[from+off]
					delete(model, from+off)
					delete(model, to+off)
					if ok {
						model[to+off] = ref
					}
				}
			}
			for i := range 120 {
				a := page(i)
				r, k, ok := l.layout.Load().find(a + 5)
				want, has := model[a]
				if ok != has || ok && (want != pageRef{r, k}) {
					t.Fatalf("%v: page %d of %v, %v; want page %d of %v, %v", a, k, r, ok, want.i, want.r, has)
				}
				if has {
					if at, _, ok := l.layout.Load().locate(want.r, want.i, 1); !ok || at != a {
						t.Fatalf("page %d is at %v, %v; want %v", want.i, at, ok, a)
					}
				}
			}
		}
	}
}

func TestSourcesRefuseShortImages(t *testing.T) {
	ctx := context.Background()
	name := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(name, bytes.Repeat([]byte{7}, 8*smallPage), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := NewFileSource(file, 0, 9*smallPage); !errors.Is(err, ErrBeyondSource) {
		t.Errorf("longer than the file: %v", err)
	}
	if _, err := NewFileSource(file, math.MaxUint64-4095, 8*smallPage); !errors.Is(err, ErrBeyondSource) {
		t.Errorf("offset overflows: %v", err)
	}
	src, err := NewFileSource(file, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := ReaderSource(file, 8*smallPage)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 2*smallPage)
	for _, s := range []Source{src, reader} {
		if err := s.ReadPages(ctx, p, 6*smallPage); err != nil || p[2*smallPage-1] != 7 {
			t.Errorf("%T: last pages: %v", s, err)
		}
		if err := s.ReadPages(ctx, p, 7*smallPage); !errors.Is(err, ErrBeyondSource) {
			t.Errorf("%T: beyond the end: %v", s, err)
		}
		if err := s.ReadPages(ctx, p, math.MaxUint64-4095); !errors.Is(err, ErrBeyondSource) {
			t.Errorf("%T: offset overflows: %v", s, err)
		}
	}
	if err := file.Truncate(7*smallPage - 1); err != nil {
		t.Fatal(err)
	}
	for _, s := range []Source{src, reader} {
		if err := s.ReadPages(ctx, p, 6*smallPage); !errors.Is(err, ErrTruncated) {
			t.Errorf("%T: of a file that has shrunk: %v", s, err)
		}
	}
	if err := src.TryReadPages(p, 6*smallPage); err == nil {
		t.Error("TryReadPages of a file that has shrunk succeeds")
	}
	if err := src.ZeroRanges(func(off, n uint64) bool { t.Errorf("hole [%#x, +%#x)", off, n); return true }); !errors.Is(err, ErrTruncated) {
		t.Errorf("holes of a file that has shrunk: %v", err)
	}
}

func TestZeroRanges(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	file, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	const size = 4 << 20
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteAt(imagePage(0), 1<<20); err != nil {
		t.Fatal(err)
	}
	src, err := NewFileSource(file, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	zero := uint64(0)
	if err := src.ZeroRanges(func(off, n uint64) bool {
		if off <= 1<<20 && off+n > 1<<20 {
			t.Errorf("[%#x, +%#x) is not a hole", off, n)
		}
		zero += n
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if zero == 0 {
		t.Skip("this file system does not tell of holes; use another for TMPDIR")
	}
	for name, policy := range map[string]ZeroPolicy{"served": ServeZeroes, "left to the kernel": LeaveToKernel} {
		t.Run(name, func(t *testing.T) {
			r := newReal(t, size, realOptions{features: events})
			g := serveReal(t, newTestServer(t, Options{}), r, GuestOptions{Source: src, Zeroes: policy})
			// First one that the pager has to answer: by then it has left the zeroes.
			loadPage(t, r.page(256), imagePage(0))
			loadPage(t, r.page(3), zeroPage)
			loadPage(t, r.page(1000), zeroPage)
			want := uint64(3)
			if policy == LeaveToKernel {
				want = 1
			}
			if got := g.Stats().Missing.Load(); got != want {
				t.Errorf("%d faults told, want %d", got, want)
			}
			mustCount(t, "reads of the source", &g.Stats().Reads, 1)
		})
	}
}

func TestWorkingSetFile(t *testing.T) {
	ws := &WorkingSet{Image: Identity{1, 2}, Pages: 1000, Runs: []PageRun{{900, 100}, {0, 5}, {17, 1}, {6, 2}}}
	var b bytes.Buffer
	if _, err := ws.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	got, err := ReadWorkingSet(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(ws, got); d != "" {
		t.Error(d)
	}
	// Every byte changed, every end cut off, and something after it.
	for i := range b.Len() {
		bad := bytes.Clone(b.Bytes())
		bad[i] ^= 0x41
		if _, err := ReadWorkingSet(bytes.NewReader(bad)); !errors.Is(err, ErrWorkingSet) {
			t.Errorf("byte %d changed: %v", i, err)
		}
		if _, err := ReadWorkingSet(bytes.NewReader(b.Bytes()[:i])); !errors.Is(err, ErrWorkingSet) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
	if _, err := ReadWorkingSet(io.MultiReader(&b, bytes.NewReader([]byte{0}))); !errors.Is(err, ErrWorkingSet) {
		t.Errorf("with something after it: %v", err)
	}
	for name, bad := range map[string]*WorkingSet{
		"overlap":    {Pages: 10, Runs: []PageRun{{0, 5}, {4, 1}}},
		"beyond":     {Pages: 10, Runs: []PageRun{{8, 3}}},
		"overflow":   {Pages: 10, Runs: []PageRun{{math.MaxUint64, 2}}},
		"empty run":  {Pages: 10, Runs: []PageRun{{1, 0}}},
		"too many":   {Pages: 1, Runs: []PageRun{{0, 1}, {0, 1}}},
		"impossible": {Pages: math.MaxUint64},
	} {
		var b bytes.Buffer
		bad.WriteTo(&b)
		if _, err := ReadWorkingSet(&b); !errors.Is(err, ErrWorkingSet) {
			t.Errorf("%s: %v", name, err)
		}
		f := newFake(t)
		s := newTestServer(t, Options{})
		_, err := s.add(f, true, GuestOptions{
			Source: &testSource{size: 10 * smallPage}, Regions: []Region{{Start: base, Size: 10 * smallPage}},
			Fail: func(error) {}, Fill: Fill{Replay: bad},
		})
		if !errors.Is(err, ErrWorkingSet) && !errors.Is(err, ErrWrongImage) {
			t.Errorf("replay of %s: %v", name, err)
		}
	}
}

// TestRecordAndReplay: what one guest touched is there for the next before it
// asks, and not for a guest of another image.
func TestRecordAndReplay(t *testing.T) {
	const n = 4096
	src := &testSource{size: n * smallPage}
	id, err := ImageIdentity(context.Background(), src)
	if err != nil {
		t.Fatal(err)
	}
	s := newTestServer(t, Options{})
	r := newReal(t, n*smallPage, realOptions{features: events})
	g := serveReal(t, s, r, GuestOptions{Source: src, Image: id, Recording: Record})
	touched := []int{4000, 4001, 4003, 17, 900, 901, 5, 4002}
	for _, i := range touched {
		loadPage(t, r.page(i), imagePage(uint64(i)*smallPage))
	}
	ws := g.WorkingSet()
	want := []PageRun{{4000, 2}, {4003, 1}, {17, 1}, {900, 2}, {5, 1}, {4002, 1}}
	if d := cmp.Diff(want, ws.Runs); d != "" {
		t.Error(d)
	}
	r2 := newReal(t, n*smallPage, realOptions{features: events})
	g2 := serveReal(t, s, r2, GuestOptions{Source: src, Image: id, Recording: Record, Fill: Fill{Replay: ws}})
	eventually(t, "the replay to end", func() bool { return !g2.fill.wanted() && g2.fill.active.Load() == 0 })
	for _, i := range touched {
		loadPage(t, r2.page(i), imagePage(uint64(i)*smallPage))
	}
	if n := g2.Stats().Missing.Load(); n != 0 {
		t.Errorf("%d faults on replayed pages", n)
	}
	loadPage(t, r2.page(77), imagePage(77*smallPage))
	merged, err := ws.Merge(g2.WorkingSet())
	if err != nil || merged.Len() != ws.Len()+1 {
		t.Errorf("merged %d pages, %v; want %d", merged.Len(), err, ws.Len()+1)
	}
	_, err = s.Add(GuestOptions{FD: r2.fd, Regions: []Region{{Start: r2.start, Size: r2.size}}, Source: src, Image: Identity{9}, Fail: func(error) {}, Fill: Fill{Replay: ws}})
	if !errors.Is(err, ErrWrongImage) {
		t.Errorf("replay on another image: %v", err)
	}
}

func TestTakeoverBlobIsNotBelieved(t *testing.T) {
	l := newLedger("name", nil, []Region{{Start: base, Size: 64 * smallPage, PageSize: smallPage}, {Start: base + 1<<30, Size: 64 * smallPage, Offset: smallPage, PageSize: smallPage, Arming: ArmInstalled}})
	l.regions[0].pages.remove(3, 9)
	for i := range 20 {
		l.regions[1].pages.claim(i)
		l.regions[1].pages.settle(i, armed)
	}
	l.regions[0].pages.claim(40) // a claim of somebody who is gone
	l.layout.Store(l.layout.Load().moved(page(2), page(900), 4*smallPage))
	l.wakes = []addrRange{{page(1), page(2)}}
	l.vacant = []addrRange{{page(2), page(6)}, {page(8), page(9)}}
	l.removals = true
	blob := (&Takeover{l: l, image: Identity{5}}).encode()
	got, err := decodeTakeover(blob)
	if err != nil {
		t.Fatal(err)
	}
	l.regions[0].pages.giveBack(40)
	if got.Name() != "name" || got.Image() != (Identity{5}) || !got.l.removals || !slices.Equal(got.l.wakes, l.wakes) || !slices.Equal(got.l.vacant, l.vacant) {
		t.Errorf("got %+v", got)
	}
	for i, r := range l.regions {
		for k := range r.pages.n {
			if a, b := r.pages.at(k), got.l.regions[i].pages.at(k); a != b {
				t.Errorf("page %d of region %d: state %d, want %d", k, i, b, a)
			}
		}
		if a, b := r.pages.unsettled.Load(), got.l.regions[i].pages.unsettled.Load(); a != b {
			t.Errorf("region %d: %d unsettled, want %d", i, b, a)
		}
	}
	for _, a := range []addr.HVA{page(0), page(2), page(900), page(903), page(904), page(40)} {
		r, i, ok := l.layout.Load().find(a)
		r2, i2, ok2 := got.l.layout.Load().find(a)
		if ok != ok2 || ok && (r.index != r2.index || i != i2) {
			t.Errorf("%v is page %d, %v; want %d, %v", a, i2, ok2, i, ok)
		}
	}
	for i := range blob {
		bad := bytes.Clone(blob)
		bad[i] ^= 0x55
		if _, err := decodeTakeover(bad); !errors.Is(err, ErrHandover) {
			t.Errorf("byte %d changed: %v", i, err)
		}
		if _, err := decodeTakeover(blob[:i]); !errors.Is(err, ErrHandover) {
			t.Errorf("cut at %d: %v", i, err)
		}
		// The checksum is no defence against who can compute it: without it,
		// nothing may panic, hang, or make a layout with a page in two places.
		fixed := withSum(bad)
		if t2, err := decodeTakeover(fixed); err == nil {
			spans := t2.l.layout.Load().spans
			if !slices.IsSortedFunc(spans, func(a, b span) int {
				if a.end() <= b.start {
					return -1
				}
				return 1
			}) {
				t.Errorf("byte %d changed: overlapping spans %v", i, spans)
			}
		}
	}
}

func TestCacheKeysCannotCollide(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDMinorShmem)
	a := &testSource{size: 16 * smallPage}
	b, err := BytesSource(bytes.Repeat([]byte{9}, 16*smallPage))
	if err != nil {
		t.Fatal(err)
	}
	for _, src := range []Source{a, b} {
		c, err := NewCache(src)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		want := make([]byte, smallPage)
		src.ReadPages(context.Background(), want, 3*smallPage)
		if err := c.fetch(context.Background(), make([]byte, smallPage), 3*smallPage, func(ctx context.Context, p []byte, off uint64) error { return src.ReadPages(ctx, p, off) }); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, smallPage)
		if _, err := c.file.ReadAt(got, 3*smallPage); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%v; the cache holds %x..., want %x...", err, head(got), head(want))
		}
		ro, err := c.ReadOnly()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ro.WriteAt(got, 0); err == nil {
			t.Error("what guests map can be written")
		}
		if err := ro.Truncate(0); err == nil {
			t.Error("what guests map can be truncated")
		}
		ro.Close()
	}
}

func TestChooseSaysWhy(t *testing.T) {
	for _, c := range []struct {
		u    Use
		want Mode
	}{
		{Use{LocalFile: true}, ModeFile},
		{Use{LocalFile: true, Clones: 50}, ModeFile},
		{Use{LocalFile: true, Balloon: true}, ModeCopy},
		{Use{LocalFile: true, MustFail: true}, ModeCopy},
		{Use{Remote: true, Clones: 50}, ModeContinue},
		{Use{Remote: true, Clones: 50, Balloon: true}, ModeContinue},
		{Use{Remote: true, Clones: 50, Shared: true}, ModeCopy},
		{Use{Hugetlb: true, Clones: 50}, ModeCopy},
		{Use{Remote: true}, ModeCopy},
	} {
		if got, why := Choose(c.u); got != c.want || why == "" {
			t.Errorf("%+v: %v (%s), want %v", c.u, got, why, c.want)
		}
	}
}

// withSum makes the checksum of a blob right again.
func withSum(blob []byte) []byte {
	body := blob[:len(blob)-4]
	return binary.LittleEndian.AppendUint32(bytes.Clone(body), crc32.Checksum(body, castagnoli))
}
