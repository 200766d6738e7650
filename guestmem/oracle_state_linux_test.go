//go:build amd64

package guestmem

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/vmarea"
)

// What both sides look like: the areas as /proc/PID/maps shows them, which pages
// are there, and what is in them. Looking makes no absent page present.

// shownArea is a line of maps, without what differs by nature.
type shownArea struct {
	addr.Range
	perm string
	off  uint64
	id   any // the same for parts of the same object; nil: private anonymous
}

func (a shownArea) String() string {
	return fmt.Sprintf("%v %s %x", a.Range, a.perm, a.off)
}

// joined adds a line to a list, to its last one if nothing visible separates
// them.
func joined(list []shownArea, a shownArea) []shownArea {
	if a.id == nil {
		a.off = 0
	}
	if n := len(list); n > 0 {
		p := &list[n-1]
		if p.End == a.Start && p.perm == a.perm && p.id == a.id && (a.id == nil || p.off+p.Len() == a.off) {
			p.End = a.End
			return list
		}
	}
	return append(list, a)
}

// parseLine takes a line of maps apart: start-end perm offset device inode.
func parseLine(line string) (a shownArea, inode string, ok bool) {
	f := strings.Fields(line)
	if len(f) < 5 {
		return a, "", false
	}
	from, to, _ := strings.Cut(f[0], "-")
	start, err1 := strconv.ParseUint(from, 16, 64)
	end, err2 := strconv.ParseUint(to, 16, 64)
	off, err3 := strconv.ParseUint(f[2], 16, 64)
	a = shownArea{Range: addr.Range{Start: addr.GVA(start), End: addr.GVA(end)}, perm: f[1], off: off}
	return a, f[3] + " " + f[4], err1 == nil && err2 == nil && err3 == nil
}

// kernelAreas lists what lies in the window.
func (k *kernelHost) kernelAreas(slot int) ([]shownArea, error) {
	lines, err := k.kernelLines(slot)
	var list []shownArea
	for _, a := range lines {
		list = joined(list, a)
	}
	return list, err
}

// kernelLines lists it line by line, as the kernel has merged it.
func (k *kernelHost) kernelLines(slot int) ([]shownArea, error) {
	var text []byte
	var buf [16 << 10]byte
	for {
		n, err := unix.Pread(k.proc[slot].maps, buf[:], int64(len(text)))
		if err != nil {
			return nil, fmt.Errorf("maps: %w", err)
		}
		if n == 0 {
			break
		}
		text = append(text, buf[:n]...)
	}
	var list []shownArea
	for line := range strings.Lines(string(text)) {
		a, inode, ok := parseLine(line)
		if !ok {
			return nil, fmt.Errorf("maps: %q", line)
		}
		// What is reserved around the window may have been joined with what is in it.
		if a.Range = a.Intersect(k.view.window); a.IsEmpty() {
			continue
		}
		if inode != "00:00 0" {
			a.id = inode
		}
		list = append(list, a)
	}
	return list, nil
}

// softAreas lists the areas as String shows them. Which object they are of it
// does not show.
func softAreas(as *AddressSpace) ([]shownArea, error) {
	var ids []any
	as.tree.Snapshot().Ascend(0, func(a *vmarea.Area) bool {
		var id any
		if a.Backing != nil {
			id = a.Backing
		}
		ids = append(ids, id)
		return true
	})
	var list []shownArea
	for line := range strings.Lines(as.String()) {
		a, _, ok := parseLine(line)
		if !ok || len(ids) == 0 {
			return nil, fmt.Errorf("String has a line %q, %d areas left", line, len(ids))
		}
		a.id, ids = ids[0], ids[1:]
		list = joined(list, a)
	}
	return list, nil
}

// compareAreas says what differs, "" for nothing. Objects need only correspond.
func compareAreas(kernel, soft []shownArea) string {
	toSoft, toKernel := map[any]any{}, map[any]any{}
	same := func(a, b shownArea) bool {
		if a.Range != b.Range || a.perm != b.perm || a.off != b.off || (a.id == nil) != (b.id == nil) {
			return false
		}
		if a.id == nil {
			return true
		}
		s, known := toSoft[a.id]
		k, known2 := toKernel[b.id]
		toSoft[a.id], toKernel[b.id] = b.id, a.id
		return known == known2 && (!known || s == b.id && k == a.id)
	}
	for i := range max(len(kernel), len(soft)) {
		if i >= len(kernel) || i >= len(soft) || !same(kernel[i], soft[i]) {
			return fmt.Sprintf("areas differ from the %dth on:\n\tkernel %v\n\there   %v", i, some(kernel, i), some(soft, i))
		}
	}
	return ""
}

func some(list []shownArea, i int) []shownArea { return list[min(i, len(list)):min(i+4, len(list))] }

// residents gathers the pages that a page table leads to, in order.
type residents struct {
	pages  []addr.GVA
	frames []addr.PFN
}

func (r *residents) VisitTable(addr.PFN, int, pagetable.Entry) bool { return true }

func (r *residents) VisitLeaf(gva addr.GVA, e pagetable.Entry) {
	for i, f := range pagetable.AppendFrames(nil, e) {
		r.pages = append(r.pages, gva+addr.GVA(i)*page)
		r.frames = append(r.frames, f)
	}
}

// kernelResidents lists the pages of the window that a process has. Before 6.7
// it can say so page by page only: then in large areas just those are asked for
// that are here.
func (k *kernelHost) kernelResidents(slot int, areas []shownArea, here []addr.GVA) ([]addr.GVA, error) {
	var found []addr.Range
	var err error
	if !k.noScan {
		found, err = scanPagemap(k.proc[slot].pagemap, k.view.window)
		k.noScan = err != nil
	}
	if k.noScan {
		if found, err = k.readPagemap(slot, areas, here); err != nil {
			return nil, fmt.Errorf("pagemap: %w", err)
		}
	}
	var pages []addr.GVA
	for _, r := range found {
		for at := r.Start; at < r.End; at += page {
			pages = append(pages, at)
		}
	}
	return pages, nil
}

// mostRanged is how many pages an area has at most whose entries are all read.
const mostRanged = 2048

func (k *kernelHost) readPagemap(slot int, areas []shownArea, here []addr.GVA) ([]addr.Range, error) {
	var found []addr.Range
	read := func(r addr.Range) error {
		buf := make([]byte, 8*(r.Len()/page))
		if _, err := unix.Pread(k.proc[slot].pagemap, buf, int64(r.Start/page*8)); err != nil {
			return err
		}
		for i := 0; i < len(buf); i += 8 {
			if buf[i+7]&0xc0 != 0 && buf[i+7]&4 == 0 { // present, or swapped out, and no guard
				at := r.Start + addr.GVA(i/8)*page
				found = append(found, addr.Range{Start: at, End: at + page})
			}
		}
		return nil
	}
	for _, a := range areas {
		if a.Len() <= mostRanged*page {
			if err := read(a.Range); err != nil {
				return nil, err
			}
			continue
		}
		for _, at := range here {
			if a.Contains(at) {
				if err := read(addr.Range{Start: at, End: at + page}); err != nil {
					return nil, err
				}
			}
		}
	}
	return found, nil
}

// look compares one member of the family.
func (o *oracleRun) look(slot int, moment moment) string {
	as := o.w.spaces[slot]
	kernel, err := o.k.kernelAreas(slot)
	if err != nil {
		return err.Error()
	}
	soft, err := softAreas(as)
	if err != nil {
		return err.Error()
	}
	if diff := compareAreas(kernel, soft); diff != "" {
		return fmt.Sprintf("space %d: %s", slot, diff)
	}
	var here residents
	as.pt.Visit(&here)
	there, err := o.k.kernelResidents(slot, kernel, here.pages)
	if err != nil {
		return err.Error()
	}
	return o.comparePages(slot, moment, there, &here)
}

// hasHuge reports whether memory has come 2 MiB at a time on this side.
func (o *oracleRun) hasHuge() bool {
	h := &o.w.mem.huge
	return h.installed.Load()+h.collapsed.Load()+h.fellBack.Load() > 0
}

// moment says when a space is looked at.
type moment int

const (
	someTime moment = iota
	atFork          // of the space looked at, from its parent
)

// comparePages compares residency, and the contents of what is there on both
// sides.
func (o *oracleRun) comparePages(slot int, moment moment, there []addr.GVA, here *residents) string {
	before := o.hereOnly[slot]
	now := map[addr.GVA]bool{}
	i, j := 0, 0
	for i < len(there) || j < len(here.pages) {
		switch {
		case j == len(here.pages) || i < len(there) && there[i] < here.pages[j]:
			if text := o.judge(slot, pageDifference{at: there[i], huge: o.hasHuge()}); text != "" {
				return text
			}
			i++
		case i == len(there) || here.pages[j] < there[i]:
			at := here.pages[j]
			d := pageDifference{at: at, here: true, huge: o.hasHuge(), atFork: moment == atFork || before[at], zero: isZero(o.w.mem.arena.Bytes(here.frames[j]))}
			if d.atFork {
				now[at] = true
			}
			if text := o.judge(slot, d); text != "" {
				return text
			}
			j++
		default:
			n := 1
			for n < 16 && i+n < len(there) && j+n < len(here.pages) && there[i+n] == here.pages[j+n] && there[i+n] == there[i]+addr.GVA(n)*page {
				n++
			}
			if text := o.compareBytes(slot, there[i], here.frames[j:j+n]); text != "" {
				return text
			}
			i, j = i+n, j+n
		}
	}
	o.hereOnly[slot] = now
	return ""
}

var zeroes [page]byte

func isZero(p []byte) bool { return bytes.Equal(p, zeroes[:]) }

// judge says what is wrong with a page that is there on one side only, "" if
// the differences allow it.
func (o *oracleRun) judge(slot int, d pageDifference) string {
	d.area = o.w.spaces[slot].tree.Snapshot().Find(d.at)
	d.around = o.w.mem.around
	if d.area != nil && d.area.Backing != nil {
		obj := d.area.Backing.(*Object)
		index := d.area.OffsetOf(d.at) / page
		if index < obj.pages() {
			_, there := obj.page(index)
			d.inObject = there || obj.src != nil // the kernel's file is all cached
		}
	}
	for _, x := range o.exclusions {
		if x.page != nil && x.page(d) {
			return ""
		}
	}
	side := "in the kernel"
	if d.here {
		side = "here"
	}
	return fmt.Sprintf("space %d: the page at %v (%v) is there only %s", slot, d.at, d.area, side)
}

func (o *oracleRun) compareBytes(slot int, at addr.GVA, frames []addr.PFN) string {
	buf := o.buf[:len(frames)*int(page)]
	n, err := unix.Pread(o.k.proc[slot].mem, buf, int64(at))
	if n != len(buf) {
		return fmt.Sprintf("space %d: reading the kernel's memory at %v: %d, %v", slot, at, n, err)
	}
	for i, f := range frames {
		want, got := buf[i*int(page):][:page], o.w.mem.arena.Bytes(f)
		if !bytes.Equal(want, got) {
			k := 0
			for want[k] == got[k] {
				k++
			}
			return fmt.Sprintf("space %d: byte at %v is %#x, in the kernel %#x", slot, at+addr.GVA(i)*page+addr.GVA(k), got[k], want[k])
		}
	}
	return ""
}
