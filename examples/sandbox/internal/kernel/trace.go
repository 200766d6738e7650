//go:build linux && amd64

package kernel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// traceLine is one call in the log.
type traceLine struct {
	t     *Task
	name  string
	args  string
	began time.Time
}

// traceBegin formats the arguments, before the call can change what they point to.
func (t *Task) traceBegin(nr uint64, c *call, a args) traceLine {
	line := traceLine{t: t, name: callName(nr), began: time.Now()}
	shape := "xxx"
	if c != nil {
		line.name, shape = c.name, c.args
	}
	parts := make([]string, len(shape))
	for i, kind := range shape {
		parts[i] = t.formatArg(kind, a[i])
	}
	line.args = strings.Join(parts, ", ")
	return line
}

func (t *Task) formatArg(kind rune, v uint64) string {
	switch kind {
	case 'd':
		if int32(v) == atFDCWD {
			return "AT_FDCWD"
		}
		return fmt.Sprint(int32(v))
	case 'i':
		return fmt.Sprint(int32(v))
	case 'o':
		return fmt.Sprintf("%#o", v)
	case 's':
		s, err := t.proc.mm.as.ReadCString(t.call, addr.GVA(v), maxPath)
		if err != nil {
			return fmt.Sprintf("%#x", v)
		}
		if len(s) > 64 {
			return fmt.Sprintf("%q…", s[:64])
		}
		return fmt.Sprintf("%q", s)
	}
	return fmt.Sprintf("%#x", v)
}

func (l traceLine) end(ret uint64, err error) {
	result := slog.Int64("ret", int64(ret))
	var e unix.Errno
	switch {
	case errors.As(err, &e):
		result = slog.String("err", unix.ErrnoName(e))
	case err != nil:
		result = slog.String("ret", err.Error())
	case ret > 1<<31:
		result = slog.String("ret", fmt.Sprintf("%#x", ret))
	}
	l.t.k.Trace.LogAttrs(context.Background(), slog.LevelInfo, l.name,
		slog.Int("pid", l.t.tid), slog.String("args", l.args), result, slog.Duration("took", time.Since(l.began)))
}
