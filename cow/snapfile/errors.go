package snapfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"
)

// Errors by name. What the system answered is reached through them too:
// errors.Is(err, unix.EIO) works.
var (
	// ErrDamaged: bytes of the file are not what was written.
	ErrDamaged = errors.New("the snapshot file is damaged")
	// ErrTruncated: the file is shorter than it says.
	ErrTruncated = errors.New("the snapshot file is truncated")
	// ErrForeign: this is no snapshot file.
	ErrForeign = errors.New("not a snapshot file")
	// ErrNewer: the file is of a version that this library does not know.
	ErrNewer = errors.New("the snapshot file is of a newer version")
	// ErrParent: a file of the chain is missing, is not the one that the
	// increment was made against, cannot be read, or the chain is too long.
	ErrParent = errors.New("the parent of the snapshot file cannot be used")
	// ErrCodec: the codec is not the one that was given, or it failed.
	ErrCodec = errors.New("codec")
	// ErrRegions: a region table is not acceptable, is not that of the parent,
	// or an address is in no region.
	ErrRegions = errors.New("regions do not match")
	// ErrImage: the image that was to be written failed, or broke its contract.
	ErrImage = errors.New("the image cannot be read")
	// ErrNoSpace: the disk, the quota or the limit of the size of files is used
	// up (ENOSPC, EDQUOT, EFBIG).
	ErrNoSpace = errors.New("no space for the snapshot file")
	// ErrLimit: more than one of the Max constants allows.
	ErrLimit = errors.New("beyond a limit of the format")
	// ErrInvalid: an argument is wrong.
	ErrInvalid = errors.New("invalid argument")
	// ErrClosed: the File was closed.
	ErrClosed = errors.New("closed")
	// ErrWouldBlock: the bytes are not at hand; RegionSource.TryReadPages only.
	ErrWouldBlock = errors.New("would block")
)

// An Error says what failed on which file.
type Error struct {
	Op   string // "open", "write", "read", "verify", "restore"
	Path string
	Err  error
}

func (e *Error) Error() string { return fmt.Sprintf("snapfile: %s %s: %v", e.Op, e.Path, e.Err) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// fileError names the operation and the file, once.
func fileError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	if e := (*Error)(nil); errors.As(err, &e) && e.Op == op && e.Path == path {
		return err
	}
	return &Error{op, path, err}
}

func damagedf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

func limitf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrLimit, fmt.Sprintf(format, args...))
}

func invalidf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

func regionsf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRegions, fmt.Sprintf(format, args...))
}

func imagef(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrImage, fmt.Sprintf(format, args...))
}

// outputError names what a failing write, or one that wrote too little, is
// about.
func outputError(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG), errors.Is(err, io.ErrShortWrite):
		return fmt.Errorf("%s: %w: %w", doing, ErrNoSpace, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// inputError names what a failing read is about. The file was as long as it
// should be when it was opened.
func inputError(doing string, err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%s: %w", doing, ErrTruncated)
	case errors.Is(err, fs.ErrClosed):
		return fmt.Errorf("%s: %w", doing, ErrClosed)
	}
	return fmt.Errorf("%s: %w", doing, err)
}
