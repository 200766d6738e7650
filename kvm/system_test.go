//go:build linux && amd64

package kvm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/guestmm/guestmm/guestmem"
	"golang.org/x/sys/unix"
)

func TestOpenSaysWhatIsWrong(t *testing.T) {
	_, err := openAt(filepath.Join(t.TempDir(), "kvm"))
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "kvm_intel") {
		t.Errorf("no device: %v", err)
	}
	err = withCure(unix.EACCES)
	if !errors.Is(err, unix.EACCES) || !strings.Contains(err.Error(), "group") {
		t.Errorf("no permission: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openAt(file); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("not a KVM device: %v", err)
	}
}

func TestSystemIsClosedOnce(t *testing.T) {
	s := requireKVM(t)
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.createVM(); !errors.Is(err, ErrClosed) {
		t.Errorf("createVM after Close: %v", err)
	}
}

func TestPlatformComesFirstAndGoesLast(t *testing.T) {
	s := requireKVM(t)
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	as, err := m.NewAddressSpace(guestmem.SpaceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewPlatform(s, m, PlatformOptions{}); !errors.Is(err, ErrBusy) {
		t.Errorf("NewPlatform over a memory in use: %v", err)
	}
	as.Close()
	if _, err := NewPlatform(s, m, PlatformOptions{MaxVCPUs: 1 << 20}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("NewPlatform with a million vCPUs: %v", err)
	}
	p, err := NewPlatform(s, m, PlatformOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(p)
	if as, err = m.NewAddressSpace(guestmem.SpaceOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); !errors.Is(err, ErrBusy) {
		t.Errorf("Close with an address space: %v", err)
	}
	as.Close()
	for range 2 {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	c := p.NewContext()
	if _, err := p.Run(t.Context(), as, c); !errors.Is(err, ErrClosed) {
		t.Errorf("Run after Close: %v", err)
	}
	if s := m.Stats(); s.Supervisor != 0 || s.FramesInUse != 0 {
		t.Errorf("frames left over: %+v", s)
	}
}

func TestTooLittleMemoryForAPlatform(t *testing.T) {
	s := requireKVM(t)
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{Size: 8 << 12})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := NewPlatform(s, m, PlatformOptions{}); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("NewPlatform in 8 frames: %v", err)
	}
	if s := m.Stats(); s.Supervisor != 0 {
		t.Errorf("frames left over: %+v", s)
	}
}
