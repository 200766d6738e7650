//go:build !linux

package pager

import "github.com/guestmm/guestmm/guestmem/addr"

func barAccess(addr.HVA, uint64) {}
