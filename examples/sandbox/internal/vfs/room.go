//go:build linux && amd64

package vfs

// Room is how much a file system holds, and how much more it could.
type Room struct {
	Writable         bool
	Bytes, Free      uint64
	Files, FreeFiles uint64
}

// readOnlyRoom is that of what does not change: there is something, and no room.
var readOnlyRoom = Room{Bytes: 1 << 30, Files: 1 << 20}

// Room returns that of the file system that a path lies in.
func (ns *Namespace) Room(v *Viewer, p string) (Room, error) {
	f, err := ns.lookup(v, p, 0)
	if err != nil {
		return Room{}, err
	}
	defer f.close()
	if f.tmp != nil || ns.isShadowed(f.path) {
		return ns.Tmp.room(), nil
	}
	return readOnlyRoom, nil
}

// RoomOf is Room of an open file.
func (ns *Namespace) RoomOf(o *Open) Room {
	_, inMemory := o.File.(*TmpFile)
	if _, _, below := ns.inMemory(o.Path); inMemory || below {
		return ns.Tmp.room()
	}
	return readOnlyRoom
}

func (fs *Tmpfs) room() Room {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return Room{
		Writable: true, Bytes: uint64(fs.limit), Free: uint64(max(fs.limit-fs.used, 0)),
		Files: maxTmpNodes, FreeFiles: uint64(max(maxTmpNodes-fs.nodes, 0)),
	}
}
