package testutil

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestKVMLack(t *testing.T) {
	if l := kvmLack(filepath.Join(t.TempDir(), "kvm")); l == nil || l.plain {
		t.Errorf("without a device: %v, want a lack that is not plain", l)
	}
	if l := kvmLack("/dev/null"); l == nil || !l.plain {
		t.Errorf("a device that is not KVM: %v, want a plain lack", l)
	}
	if l := kvmOpenLack("/dev/kvm", unix.EACCES); l.plain {
		t.Errorf("no permission: %v is plain", l)
	}
	if l := kvmOpenLack("/dev/kvm", unix.EMFILE); !l.plain {
		t.Errorf("no descriptors: %v is not plain", l)
	}
}
