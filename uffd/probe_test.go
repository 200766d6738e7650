//go:build linux && (amd64 || arm64)

package uffd

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/internal/testutil"
)

// What a probe says is what the kernel offers, where that can be told otherwise.
func TestProbesAgreeWithTheKernel(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDMissing)
	available, err := Available(Options{})
	if err != nil {
		t.Fatal(err)
	}
	features := map[*probe]Features{
		probeMissingShmem: FeatureMissingShmem, probeMinorShmem: FeatureMinorShmem,
		probeWPAnonymous: FeatureFaultWP, probeWPShmem: FeatureWPHugetlbShmem,
		probeWPUnpopulated: FeatureWPUnpopulated, probeWPAsync: FeatureWPAsync,
		probeMove: FeatureMove, probePoison: FeaturePoison,
		probeExactAddress: FeatureExactAddress, probeThreadID: FeatureThreadID,
		probeEventRemove: FeatureEventRemove, probeEventRemap: FeatureEventRemap,
		probeEventUnmap: FeatureEventUnmap, probeEventFork: FeatureEventFork,
		probeHugetlb: FeatureMissingHugetlb, probeHugetlbMinor: FeatureMinorHugetlb, probeHugetlbWP: FeatureWPHugetlbShmem,
	}
	for _, p := range allProbes {
		err := p.run()
		t.Logf("%-16s %v", p.name, err)
		want, ok := features[p]
		if !ok || errors.Is(err, ErrInconclusive) {
			continue
		}
		if (err == nil) != available.Has(want) {
			t.Errorf("%s: %v, and the kernel offers %v", p.name, err, available&want)
		}
	}
}

func TestProbeKeepsWhatIsConclusive(t *testing.T) {
	calls := 0
	answer := error(unix.EPERM)
	p := newProbe("thing", "9.9", "", func() error { calls++; return answer })
	err := p.run()
	if !errors.Is(err, ErrInconclusive) || !errors.Is(err, unix.EPERM) || errors.Is(err, ErrNotSupported) {
		t.Errorf("got %v, want inconclusive, and EPERM", err)
	}
	answer = fmt.Errorf("%w: no such thing: %w", ErrNotSupported, unix.ENOENT)
	for range 2 {
		err = p.run()
		if !errors.Is(err, ErrNotSupported) || !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "Linux 9.9") {
			t.Errorf("got %v, want not supported before Linux 9.9", err)
		}
	}
	if calls != 2 {
		t.Errorf("tried %d times, want twice", calls)
	}
	calls, answer = 0, nil
	p = newProbe("thing", "9.9", "", func() error { calls++; return answer })
	for range 2 {
		if err := p.run(); err != nil {
			t.Error(err)
		}
	}
	if calls != 1 {
		t.Errorf("tried %d times, want once", calls)
	}
}

// Without descriptors nothing can be told, and nothing is kept.
func TestProbesWithoutDescriptorsAreInconclusive(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDMissing)
	withFewFiles(t, func() {
		for _, p := range allProbes {
			fresh := newProbe(p.name, p.oldest, p.cure, p.try)
			if err := fresh.run(); !errors.Is(err, ErrInconclusive) || !errors.Is(err, unix.EMFILE) {
				t.Errorf("%s: %v, want inconclusive, and EMFILE", p.name, err)
			}
			if fresh.done {
				t.Errorf("%s is kept", p.name)
			}
		}
	})
}

// A kernel that offers something and does not do it is found out: here one that
// calls no fault at all a success.
func TestWantsTellsWhatCame(t *testing.T) {
	if err := wants(true, "x", nil); err != nil {
		t.Error(err)
	}
	if err := wants(false, "wp fault", nil); !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "no wp fault") {
		t.Error(err)
	}
	if err := wants(false, "wp fault", &Event{Kind: EventFork}); !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "came a fork") {
		t.Error(err)
	}
}
