//go:build linux && amd64

package kernel

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

const (
	sendFlags    = unix.MSG_NOSIGNAL | unix.MSG_DONTWAIT | unix.MSG_EOR | unix.MSG_MORE | unix.MSG_CONFIRM
	receiveFlags = unix.MSG_DONTWAIT | unix.MSG_PEEK | unix.MSG_WAITALL | unix.MSG_TRUNC | unix.MSG_CMSG_CLOEXEC | unix.MSG_NOSIGNAL
)

// msghdr is struct msghdr.
type msghdr struct {
	Name                uint64
	NameLen, _          uint32
	Vectors, Count      uint64
	Control, ControlLen uint64
	Flags               int32
	_                   int32
}

const (
	msghdrSize   = 56
	nameLenAt    = 8
	controlLenAt = 40
	msgFlagsAt   = 48
	mmsghdrSize  = 64
	maxMessages  = 1024
	cmsgHeader   = 16
	maxControl   = 20 << 10 // Linux's default of optmem_max
)

// send writes to a socket as flags say. What rights are left in x stay the caller's.
func (x *transfer) send(s *vfs.Socket, flags uint64) (uint64, error) {
	x.noWait = x.noWait || flags&unix.MSG_DONTWAIT != 0
	x.limit = time.Duration(s.WriteTimeout.Load())
	if !s.IsRecords() {
		return x.writeAll()
	}
	total := x.left()
	if total > vfs.MaxRecord {
		return 0, unix.EMSGSIZE
	}
	p, err := x.gather(make([]byte, total))
	if err != nil {
		return 0, err
	}
	n, err := x.try(true, func() (int, error) { return s.Send(p, len(p), x.rights) })
	if err == nil {
		x.rights = nil
	}
	return uint64(n), err
}

// received is what a call comes to that receives.
type received struct {
	done   uint64 // bytes stored
	length uint64 // of the message
	rights []*vfs.Open
}

// receive reads from a socket as flags say.
func (x *transfer) receive(s *vfs.Socket, flags uint64) (r received, err error) {
	x.noWait = x.noWait || flags&unix.MSG_DONTWAIT != 0
	x.limit = time.Duration(s.ReadTimeout.Load())
	how := vfs.Take
	if flags&unix.MSG_PEEK != 0 {
		how = vfs.Look
	}
	deliver := func(p []byte) (int, error) {
		n, err := x.scatter(p)
		return int(n), err
	}
	all := flags&unix.MSG_WAITALL != 0 && how == vfs.Take
	for first := true; first || !x.isDone(); first = false {
		p := x.t.bounce(x.left())
		if s.IsRecords() {
			p = make([]byte, min(x.left(), vfs.MaxRecord))
		}
		var m vfs.Message
		_, err := x.try(first || all, func() (_ int, err error) {
			m, err = s.Receive(p, how, deliver)
			return m.N, err
		})
		r.done, r.length, r.rights = r.done+uint64(m.N), r.length+uint64(m.Length), append(r.rights, m.Rights...)
		switch {
		case err != nil && (r.done > 0 || len(r.rights) > 0):
			return r, nil
		case err != nil:
			return r, err
		case m.Ends, m.N == 0, how == vfs.Look, m.N < len(p) && !all:
			return r, nil
		}
	}
	return r, nil
}

// sysSendto is write with flags.
func sysSendto(t *Task, a args) (uint64, error) {
	x, s, err := t.socketTransfer(a[0])
	if err != nil {
		return 0, err
	}
	defer x.o.Unref()
	if x.iovs, err = single(a)(); err != nil {
		return 0, err
	}
	if a[4] != 0 {
		return 0, notForPairs(s)
	}
	return x.sendAs(s, a[3])
}

// notForPairs is what an address is answered with.
func notForPairs(s *vfs.Socket) error {
	if s.Type == unix.SOCK_STREAM {
		return unix.EISCONN
	}
	return unix.EOPNOTSUPP
}

// sendAs sends, and signals where nobody reads.
func (x *transfer) sendAs(s *vfs.Socket, flags uint64) (uint64, error) {
	if flags&^uint64(sendFlags) != 0 {
		return 0, unix.EOPNOTSUPP
	}
	done, err := x.send(s, flags)
	if err == unix.EPIPE && flags&unix.MSG_NOSIGNAL == 0 && s.Type == unix.SOCK_STREAM {
		x.t.brokenPipe()
	}
	return done, err
}

func (t *Task) socketTransfer(fd uint64) (*transfer, *vfs.Socket, error) {
	o, s, err := t.socket(fd)
	if err != nil {
		return nil, nil, err
	}
	return &transfer{t: t, o: o, off: -1}, s, nil
}

func sysRecvfrom(t *Task, a args) (uint64, error) {
	x, s, err := t.socketTransfer(a[0])
	if err != nil {
		return 0, err
	}
	defer x.o.Unref()
	if x.iovs, err = single(a)(); err != nil {
		return 0, err
	}
	if a[3]&^uint64(receiveFlags) != 0 {
		return 0, unix.EOPNOTSUPP
	}
	r, err := x.receive(s, a[3])
	releaseAll(r.rights)
	if err == nil && a[4] != 0 && a[5] != 0 {
		err = put(t, a[5], uint32(0)) // who is at the other end has no name
	}
	if a[3]&unix.MSG_TRUNC != 0 && s.IsRecords() {
		return r.length, err
	}
	return r.done, err
}

func sysSendmsg(t *Task, a args) (uint64, error) {
	h, err := get[msghdr](t, a[1])
	if err != nil {
		return 0, err
	}
	return t.sendMessage(a[0], h, a[2])
}

func (t *Task) sendMessage(fd uint64, h msghdr, flags uint64) (uint64, error) {
	x, s, err := t.messageTransfer(fd, h)
	if err != nil {
		return 0, err
	}
	defer x.o.Unref()
	if h.Name != 0 && h.NameLen != 0 {
		return 0, notForPairs(s)
	}
	if x.rights, err = t.rights(h); err != nil {
		return 0, err
	}
	done, err := x.sendAs(s, flags)
	releaseAll(x.rights) // that nobody has taken over
	return done, err
}

func releaseAll(rights []*vfs.Open) {
	for _, o := range rights {
		o.Unref()
	}
}

// messageTransfer is what moves a message's bytes. EMSGSIZE for too many pieces.
func (t *Task) messageTransfer(fd uint64, h msghdr) (*transfer, *vfs.Socket, error) {
	x, s, err := t.socketTransfer(fd)
	if err != nil {
		return nil, nil, err
	}
	if h.Count > maxIOVecs {
		err = unix.EMSGSIZE
	} else {
		x.iovs, err = t.vector(args{0, h.Vectors, h.Count})()
	}
	if err != nil {
		x.o.Unref()
		return nil, nil, err
	}
	return x, s, nil
}

// rights finds what a message is to carry, with a reference to each. EINVAL, EBADF.
func (t *Task) rights(h msghdr) (rights []*vfs.Open, err error) {
	if h.Control == 0 || h.ControlLen == 0 {
		return nil, nil
	}
	if h.ControlLen > maxControl {
		return nil, unix.ENOBUFS
	}
	b := make([]byte, h.ControlLen)
	if err := t.readGuest(b, h.Control); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			releaseAll(rights)
			rights = nil
		}
	}()
	le := binary.LittleEndian
	for len(b) >= cmsgHeader {
		length := le.Uint64(b)
		if length < cmsgHeader || length > uint64(len(b)) {
			return rights, unix.EINVAL
		}
		if int32(le.Uint32(b[8:])) == unix.SOL_SOCKET {
			switch int32(le.Uint32(b[12:])) {
			case unix.SCM_RIGHTS:
				for fds := b[cmsgHeader:length]; len(fds) >= 4; fds = fds[4:] {
					o, err := t.files.get(int(int32(le.Uint32(fds))))
					if err != nil {
						return rights, err
					}
					if rights = append(rights, o); len(rights) > vfs.MaxRights {
						return rights, unix.EINVAL
					}
				}
			case unix.SCM_CREDENTIALS: // whoever asks for them learns nothing here
			default:
				return rights, unix.EINVAL
			}
		}
		b = b[min((length+7)&^7, uint64(len(b))):]
	}
	return rights, nil
}

func sysRecvmsg(t *Task, a args) (uint64, error) {
	h, err := get[msghdr](t, a[1])
	if err != nil {
		return 0, err
	}
	return t.receiveMessage(a[0], a[1], h, a[2])
}

func (t *Task) receiveMessage(fd, at uint64, h msghdr, flags uint64) (uint64, error) {
	x, s, err := t.messageTransfer(fd, h)
	if err != nil {
		return 0, err
	}
	defer x.o.Unref()
	if flags&^uint64(receiveFlags) != 0 {
		return 0, unix.EOPNOTSUPP
	}
	r, err := x.receive(s, flags)
	if err != nil {
		return 0, err
	}
	out := int32(flags & unix.MSG_CMSG_CLOEXEC)
	used, cut, err := t.putRights(r.rights, h, flags)
	if err != nil {
		return 0, err
	}
	if cut {
		out |= unix.MSG_CTRUNC
	}
	if s.IsRecords() && r.length > r.done {
		out |= unix.MSG_TRUNC
	}
	if s.Type == unix.SOCK_SEQPACKET && r.length > 0 {
		out |= unix.MSG_EOR
	}
	if h.Name != 0 {
		err = put(t, at+nameLenAt, uint32(0))
	}
	if err == nil {
		err = put(t, at+controlLenAt, used)
	}
	if err == nil {
		err = put(t, at+msgFlagsAt, out)
	}
	if flags&unix.MSG_TRUNC != 0 && s.IsRecords() {
		return r.length, err
	}
	return r.done, err
}

// putRights gives what a message carried descriptors, as many as there is room for, and
// lets go of the rest. It takes over the references.
func (t *Task) putRights(rights []*vfs.Open, h msghdr, flags uint64) (used uint64, cut bool, err error) {
	if len(rights) == 0 {
		return 0, false, nil
	}
	room := 0
	if h.Control != 0 && h.ControlLen > cmsgHeader {
		room = int(min(h.ControlLen-cmsgHeader, maxControl) / 4)
	}
	le := binary.LittleEndian
	b := make([]byte, cmsgHeader)
	fdFlags := 0
	if flags&unix.MSG_CMSG_CLOEXEC != 0 {
		fdFlags = unix.O_CLOEXEC
	}
	var fds []int
	for i, o := range rights {
		if i >= room || cut {
			cut = true
			o.Unref()
			continue
		}
		fd, err := t.files.add(o, 0, fdFlags)
		if err != nil {
			cut = true
			continue
		}
		fds = append(fds, fd)
		b = le.AppendUint32(b, uint32(fd))
	}
	if len(fds) == 0 {
		return 0, cut, nil
	}
	le.PutUint64(b, uint64(len(b)))
	le.PutUint32(b[8:], unix.SOL_SOCKET)
	le.PutUint32(b[12:], unix.SCM_RIGHTS)
	if err := t.writeGuest(b, h.Control); err != nil {
		for _, fd := range fds {
			_ = t.files.close(fd)
		}
		return 0, true, err
	}
	return min(uint64(len(b)+7)&^7, h.ControlLen), cut, nil
}

// sysSendmmsg and sysRecvmmsg do what their singular does until one fails.
func sysSendmmsg(t *Task, a args) (uint64, error) {
	return t.eachMessage(a[1], a[2], func(h msghdr, _ uint64) (uint64, error) {
		return t.sendMessage(a[0], h, a[3])
	})
}

func sysRecvmmsg(t *Task, a args) (uint64, error) {
	const waitForOne = 0x10000
	if a[4] != 0 {
		return 0, unix.EOPNOTSUPP // no deadline for all of them
	}
	flags := a[3] &^ waitForOne
	return t.eachMessage(a[1], a[2], func(h msghdr, at uint64) (uint64, error) {
		n, err := t.receiveMessage(a[0], at, h, flags)
		if a[3]&waitForOne != 0 {
			flags |= unix.MSG_DONTWAIT
		}
		return n, err
	})
}

func (t *Task) eachMessage(at, n uint64, do func(h msghdr, at uint64) (uint64, error)) (done uint64, err error) {
	for n = min(uint64(uint32(n)), maxMessages); done < n; done++ {
		h, err := get[msghdr](t, at)
		if err != nil {
			return partial(done, err)
		}
		length, err := do(h, at)
		if err == nil {
			err = put(t, at+msghdrSize, uint32(length))
		}
		if err != nil {
			return partial(done, err)
		}
		at += mmsghdrSize
	}
	return done, nil
}
