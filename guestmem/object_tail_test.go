package guestmem

import (
	"testing"
)

// Whoever moves the end makes what was stored past it part of the object, which the sink
// has to get though its page has not changed since it was written.
func TestSyncWritesWhatTheEndMovesOver(t *testing.T) {
	end := int64(2*page + 100)
	for name, grow := range map[string]func(*Object) error{
		"truncate": func(o *Object) error { return o.Truncate(int64(3 * page)) },
		"write": func(o *Object) error {
			_, err := o.WriteAt(ctx, []byte("x"), int64(5*page))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory(t, 16<<20)
			f := newSlowFile(6)
			o := newWritable(t, m, f)
			as := newSpace(t, m)
			at := mapShared(t, as, o, 6)
			mustDo(t, o.Truncate(end))
			mustWrite(t, as, at+2*page+90, []byte("0123456789beyond"))
			mustDo(t, as.Sync(at, 3*page, SyncWait))
			if got := len(f.bytes()); got > int(end) {
				t.Fatalf("%#x bytes were written, of an object of %#x", got, end)
			}
			mustDo(t, grow(o))
			if got := string(mustRead(t, as, at+2*page+90, 16)); got != "0123456789beyond" {
				t.Fatalf("the page has %q", got)
			}
			mustDo(t, as.Sync(at, 3*page, SyncWait))
			if got := string(f.bytes()[2*page+90:][:16]); got != "0123456789beyond" {
				t.Errorf("the sink has %q", got)
			}
		})
	}
}
