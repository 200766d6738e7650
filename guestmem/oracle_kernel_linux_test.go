//go:build amd64

package guestmem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// The kernel's side: a zygote (testdata/oracle/helper.c), and for each sequence
// a family of processes forked from it.

// The layout of the ring; helper.c has the same.
const (
	ringCalls   = 4096
	callSize    = 128
	maxCalls    = 64
	ringBuffers = ringCalls + maxCalls*callSize
	bufferSize  = 16 << 10
	ringSize    = ringBuffers + maxCalls*bufferSize
	ringAddress = 0x7ffffa000000 // in the helper

	callConfigure = 12

	fdRing    = 3
	fdDone    = 4
	fdCommand = 5 // of the zygote, then of each slot
	fdFiles   = fdCommand + 1 + maxFamily
)

// taskSize is the end of the lower half, as programs see it.
const taskSize addr.GVA = 1<<47 - page

// hostWindow chooses the window when it is known where the kernel places.
type hostWindow struct {
	name      string
	placement Placement
	choose    func(lowest, mmapBase addr.GVA) addr.Range
}

// hostWindows are the address spaces that the oracle tries: all of one, and
// windows in which the hole that fits runs out, from both ends.
var hostWindows = []hostWindow{
	{"whole", TopDown, func(lowest, base addr.GVA) addr.Range { return addr.Range{Start: lowest, End: base} }},
	{"32MiB", TopDown, func(_, base addr.GVA) addr.Range { return addr.Range{Start: base - 32<<20, End: base} }},
	{"tight", TopDown, func(_, base addr.GVA) addr.Range { return addr.Range{Start: base - 100*page, End: base} }},
	{"up", BottomUp, func(_, base addr.GVA) addr.Range { return addr.Range{Start: base - page, End: base - page + 32<<20} }},
}

// kernelHost is a zygote and the family of the moment. For one goroutine.
type kernelHost struct {
	view   kernelView
	lowest addr.GVA
	cmd    *exec.Cmd
	ring   []byte
	done   int                   // read end
	to     [maxFamily + 1]int    // write ends: the zygote's and the slots'
	pids   [maxFamily]int        // 0: none
	proc   [maxFamily]kernelProc // what is open of each
	files  []int                 // of worldFiles, for writing
	err    error                 // it is of no use any more

	unfit      string // why this host cannot have this window, "" if it can
	alignsHuge bool   // it places anonymous whole 2 MiB, and only those, at multiples of 2 MiB
	noScan     bool   // pagemap is read, not scanned
	filled     bool   // the files have been
	noGuards   bool   // it has none, or does not tell them from pages
}

// kernelProc is the files of a process through which it is looked at.
type kernelProc struct{ maps, mem, pagemap int }

// helperFile returns a file to run.
func helperFile(tb testing.TB, bin []byte) string {
	path := filepath.Join(tb.TempDir(), "oracle-helper")
	mustDo(tb, os.WriteFile(path, bin, 0o700))
	return path
}

func helperBytes(tb testing.TB) []byte {
	b, err := os.ReadFile("testdata/oracle/helper.bin")
	mustDo(tb, err)
	return b
}

// newKernelHost starts a zygote. It ends with the test.
func newKernelHost(tb testing.TB, path string, win hostWindow) *kernelHost {
	tb.Helper()
	k := &kernelHost{}
	ringFd, err := unix.MemfdCreate("oracle-ring", unix.MFD_CLOEXEC)
	mustDo(tb, err)
	mustDo(tb, unix.Ftruncate(ringFd, ringSize))
	k.ring, err = unix.Mmap(ringFd, 0, ringSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	mustDo(tb, err)
	inherit := []*os.File{os.NewFile(uintptr(ringFd), "ring")}
	pipe := func() (r, w int) {
		var p [2]int
		mustDo(tb, unix.Pipe2(p[:], unix.O_CLOEXEC))
		return p[0], p[1]
	}
	r, w := pipe()
	k.done = r
	inherit = append(inherit, os.NewFile(uintptr(w), "done"))
	for i := range k.to {
		r, k.to[i] = pipe()
		inherit = append(inherit, os.NewFile(uintptr(r), "command"))
	}
	k.files = make([]int, len(worldFiles))
	for i, f := range worldFiles {
		inherit = append(inherit, k.openFile(tb, i, f))
		k.view.fds = append(k.view.fds, fdFiles+i)
	}
	direction := "down"
	if win.placement == BottomUp {
		direction = "up"
	}
	for range 6000 { // somebody else's fork may hold the file open for writing
		k.cmd = exec.Command(path, direction)
		k.cmd.ExtraFiles = inherit
		if err = k.cmd.Start(); !errors.Is(err, unix.ETXTBSY) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	mustDo(tb, err)
	for _, f := range inherit {
		f.Close()
	}
	tb.Cleanup(func() { k.close(tb) })
	k.awaitDone()
	limitLocked(tb, k.cmd.Process.Pid)
	base := addr.GVA(binary.LittleEndian.Uint64(k.ring[8:]))
	if win.placement == BottomUp && base > taskSize/2 {
		k.unfit = "personality(2) may not change the layout"
	}
	k.lowest = addr.GVA(binary.LittleEndian.Uint64(k.ring[32:]))
	k.view.window = win.choose(k.lowest, base)
	k.view.end = taskSize
	k.view.ring = fdRing
	return k
}

// openFile returns what the helper is to have as file i: k keeps it for writing.
func (k *kernelHost) openFile(tb testing.TB, i int, f worldFile) *os.File {
	var err error
	if f.view > 0 {
		k.files[i], err = unix.Dup(k.files[f.view-1])
	} else {
		k.files[i], err = unix.MemfdCreate(f.name, unix.MFD_CLOEXEC)
	}
	mustDo(tb, err)
	flags := unix.O_RDONLY
	if f.access == ObjectReadWrite {
		flags = unix.O_RDWR
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", k.files[i]), flags|unix.O_CLOEXEC, 0)
	mustDo(tb, err)
	return os.NewFile(uintptr(fd), f.name)
}

// resetFiles gives the files the bytes that a world begins with, as they were
// when nobody had touched them.
func (k *kernelHost) resetFiles() error {
	for i, f := range worldFiles {
		if f.view > 0 || f.access == ObjectReadOnly && k.filled {
			continue
		}
		if err := unix.Ftruncate(k.files[i], 0); err != nil {
			return err
		}
		for done := 0; done < len(f.data); {
			n, err := unix.Pwrite(k.files[i], f.data[done:], int64(done))
			if err != nil {
				return err
			}
			done += n
		}
	}
	k.filled = true
	return nil
}

// lookAtOverhead notes what a process has that is nothing to the other side.
func (k *kernelHost) lookAtOverhead(pid int) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		var kib uint64
		if n, _ := fmt.Sscanf(line, "VmSize: %d kB", &kib); n == 1 {
			k.view.overhead = kib << 10
		}
		if n, _ := fmt.Sscanf(line, "VmData: %d kB", &kib); n == 1 {
			k.view.dataOverhead = kib << 10
		}
	}
	return nil
}

// configure says where the heap begins, once.
func (k *kernelHost) configure(brk addr.GVA) error {
	w := k.view.window
	binary.LittleEndian.PutUint64(k.ring[16:], uint64(w.Start))
	binary.LittleEndian.PutUint64(k.ring[24:], uint64(w.End))
	if err := k.lookAtOverhead(k.cmd.Process.Pid); err != nil {
		return err
	}
	r := k.callZygote(kernelCall{code: callConfigure, value: valueCount, args: [7]uint64{uint64(brk), k.view.dataOverhead}})
	if r.errno != 0 {
		return fmt.Errorf("configure: %w", r.errno)
	}
	return k.err
}

// probe finds out how the kernel places large areas: it began to align them in
// 6.7, and to do so with whole 2 MiB only in 6.13. It does without huge pages
// too, if it could have them.
func (k *kernelHost) probe() error {
	if err := k.newFamily(); err != nil {
		return err
	}
	_, err := scanCategories(k.proc[0].pagemap, addr.Range{Start: k.view.window.Start, End: k.view.window.Start + page}, pageIsGuard)
	k.noGuards = err != nil
	if k.view.window.Len() < 4*hugeAlign {
		k.alignsHuge = true // there is no room for any
		return nil
	}
	var maps []op
	for _, length := range []uint64{page, hugeAlign, hugeAlign + page, hugeAlign + page} {
		maps = append(maps, doMap(0, length, ProtNone, anon))
	}
	at, err := k.apply(maps, nil, nil)
	odd := at[2].value%hugeAlign == 0 && at[3].value%hugeAlign == 0 // one of them may be by chance
	k.alignsHuge = at[1].value%hugeAlign == 0 && !odd
	return err
}

func (k *kernelHost) close(tb testing.TB) {
	k.endFamily()
	for _, fd := range k.to {
		unix.Close(fd)
	}
	unix.Close(k.done)
	for _, fd := range k.files {
		unix.Close(fd)
	}
	if k.err != nil {
		k.cmd.Process.Kill()
	}
	_ = k.cmd.Wait()
	mustDo(tb, unix.Munmap(k.ring))
}

// newFamily ends the family of before and begins one of a single process.
func (k *kernelHost) newFamily() error {
	k.endFamily()
	if err := k.resetFiles(); err != nil {
		return err
	}
	r := k.callZygote(kernelCall{code: callFork, value: valueCount})
	if r.errno != 0 {
		return fmt.Errorf("fork of the zygote: %w", r.errno)
	}
	if err := k.born(0, int(r.value)); err != nil {
		return err
	}
	return k.lookAtOverhead(int(r.value))
}

// born notes a new member of the family.
func (k *kernelHost) born(slot, pid int) error {
	if k.err != nil {
		return k.err
	}
	k.pids[slot] = pid
	open := func(name string) int {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/%s", pid, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			k.err = errors.Join(k.err, fmt.Errorf("/proc/%d/%s: %w", pid, name, err))
			return -1
		}
		return fd
	}
	k.proc[slot] = kernelProc{open("maps"), open("mem"), open("pagemap")}
	return k.err
}

// gone waits for a member that was told to exit, and forgets it.
func (k *kernelHost) gone(slot int) {
	p := k.proc[slot]
	for _, fd := range []int{p.maps, p.mem, p.pagemap} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(k.pids[slot], &status, 0, nil)
		if err != unix.EINTR {
			break
		}
	}
	if status.Signaled() && k.err == nil {
		k.err = fmt.Errorf("a helper was killed by %v", status.Signal())
	} else if status.ExitStatus() != 0 && k.err == nil {
		k.err = fmt.Errorf("a helper failed with %d", status.ExitStatus())
	}
	k.pids[slot] = 0
}

func (k *kernelHost) endFamily() {
	for slot, pid := range k.pids {
		if pid == 0 {
			continue
		}
		if k.err == nil {
			k.call(1+slot, []kernelCall{{code: callExit}})
		} else {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		k.gone(slot)
	}
}

func (k *kernelHost) callZygote(c kernelCall) result { return k.call(0, []kernelCall{c})[0] }

// call has a process make up to maxCalls calls and returns the answers.
func (k *kernelHost) call(to int, calls []kernelCall) []result {
	out := make([]result, len(calls))
	if k.err != nil {
		return out
	}
	binary.LittleEndian.PutUint64(k.ring, uint64(len(calls)))
	for i, c := range calls {
		at := k.ring[ringCalls+i*callSize:]
		code := c.code
		if c.answer != nil {
			code = callNothing
		}
		binary.LittleEndian.PutUint64(at, code)
		if c.bufferArg > 0 {
			c.args[c.bufferArg] = uint64(ringBuffers + i*bufferSize)
			if c.bufferMapped {
				c.args[c.bufferArg] += ringAddress
			}
		}
		for j, a := range c.args {
			binary.LittleEndian.PutUint64(at[8+8*j:], a)
		}
		copy(k.buffer(i), c.in)
	}
	if _, err := unix.Write(k.to[to], []byte{1}); err != nil {
		k.err = fmt.Errorf("the helper is gone: %w", err)
		return out
	}
	k.awaitDone()
	for i, c := range calls {
		out[i] = k.answer(i, c)
	}
	return out
}

func (k *kernelHost) buffer(i int) []byte { return k.ring[ringBuffers+i*bufferSize:][:bufferSize] }

// answer reads what the helper has answered.
func (k *kernelHost) answer(i int, c kernelCall) (r result) {
	if c.answer != nil {
		return *c.answer
	}
	at := k.ring[ringCalls+i*callSize:]
	v := binary.LittleEndian.Uint64(at[64:])
	r.trouble = trouble(binary.LittleEndian.Uint64(at[72:]))
	if c.value != valueRaw && v > ^uint64(4095) {
		r.errno = syscall.Errno(-v)
		return r
	}
	if c.value != valueNone {
		r.value = v
	}
	if c.out {
		r.data = append([]byte(nil), k.buffer(i)[:min(v, bufferSize)]...)
	}
	return r
}

// awaitDone waits until a process says that it is done.
func (k *kernelHost) awaitDone() {
	var b [1]byte
	for waited := 0; k.err == nil; {
		fds := []unix.PollFd{{Fd: int32(k.done), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 200)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			k.err = err
		case n == 0:
			// For as long as nobody has ended it may be that the host is busy.
			if how := k.postMortem(); how != "" || waited == 300 {
				k.err = errors.New("the helper does not answer" + how)
			}
			waited++
		default:
			n, err := unix.Read(k.done, b[:])
			if n != 1 {
				k.err = fmt.Errorf("the helper is gone (%v)%s", err, k.postMortem())
			}
			return
		}
	}
}

// postMortem says how those ended who ended.
func (k *kernelHost) postMortem() string {
	var s strings.Builder
	for slot, pid := range k.pids {
		var status unix.WaitStatus
		if pid == 0 {
			continue
		}
		if got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil); err == nil && got == pid {
			fmt.Fprintf(&s, "; slot %d: status %#x", slot, status)
		}
	}
	return s.String()
}

// apply runs ops on this side, which had the results here on the other; calls
// for one process at a time are sent together.
func (k *kernelHost) apply(ops []op, here []result, exclusions []exclusion) ([]result, error) {
	out := make([]result, len(ops))
	var calls []kernelCall
	var where []int // the ops that they are of
	slot := 0
	flush := func() {
		if len(calls) == 0 {
			return
		}
		for i, r := range k.call(1+slot, calls) {
			out[where[i]] = r
		}
		calls, where = calls[:0], where[:0]
	}
	alive := func() (n int) {
		for _, pid := range k.pids {
			if pid != 0 {
				n++
			}
		}
		return n
	}
	for i, o := range ops {
		child := int(o.data % maxFamily)
		if o.space < 0 || o.space >= maxFamily || k.pids[o.space] == 0 ||
			o.kind == opFork && k.pids[child] != 0 || o.kind == opClose && alive() == 1 {
			out[i] = result{skipped: true}
			continue
		}
		if o.space != slot || len(calls) == maxCalls {
			flush()
			slot = o.space
		}
		k.view.pinned = here != nil && here[i].pinned
		c := opTable[o.kind].kernel(&k.view, o)
		for _, x := range exclusions {
			if x.call != nil {
				x.call(o, &c)
			}
		}
		calls, where = append(calls, c), append(where, i)
		switch o.kind {
		case opFork:
			calls[len(calls)-1].value = valueCount
			flush()
			pid := int(out[i].value)
			out[i].value = 0
			if out[i].errno == 0 && pid > 0 {
				if err := k.born(child, pid); err != nil {
					return out, err
				}
			}
		case opClose:
			flush()
			k.gone(slot)
		}
	}
	flush()
	return out, k.err
}
