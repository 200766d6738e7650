//go:build !linux

package snapfile

import "os"

func tryLock(*os.File) (bool, error) { return true, nil }

// openNoFollow refuses: without locks nothing is known to be stale.
func openNoFollow(name string) (*os.File, error) { return nil, os.ErrNotExist }

func openToRead(name string) (*os.File, error) { return os.Open(name) }

func startWriteback(*os.File, uint64, uint64) {}

func syncDirectory(string) error { return nil }

func eachData(_ *os.File, off, n uint64, fn func(off, n uint64) error) error { return fn(off, n) }
