package inject

import (
	"errors"
	"slices"
	"testing"
)

var (
	testA = New("test: a")
	testB = New("test: b")
)

func pass(points ...*Point) (failed []int) {
	for i, p := range points {
		if err := p.Err(); err != nil {
			failed = append(failed, i)
		}
	}
	return failed
}

func TestNothingFailsUnlessArmed(t *testing.T) {
	r := Start(Plan{Until: 100})
	if got := pass(testA, testB); got != nil {
		t.Errorf("%v failed outside of During", got)
	}
	if r.Passes() != 0 {
		t.Errorf("%d passes counted outside of During", r.Passes())
	}
}

func TestThePlannedPassesFail(t *testing.T) {
	for _, tt := range []struct {
		plan   Plan
		want   []int
		passes int
	}{
		{Plan{}, nil, 4},
		{Plan{From: 1, Until: 3}, []int{1, 2}, 4},
		{Plan{From: 1, Until: 2, Match: Only("test: b")}, []int{3}, 2},
		{Plan{OneIn: 1}, []int{0, 1, 2, 3}, 4},
		{Plan{Missing: Only("test: b")}, []int{1, 3}, 2},
		{Plan{Missing: Only("test: b"), From: 1, Until: 2}, []int{1, 2, 3}, 2},
	} {
		r := Start(tt.plan)
		before := testA.Failed() + testB.Failed()
		var got []int
		if err := r.During(func() error { got = pass(testA, testB, testA, testB); return nil }); err != nil {
			t.Error(err)
		}
		if !slices.Equal(got, tt.want) || r.Passes() != tt.passes || tt.plan.Missing == nil && r.Failures() != len(tt.want) {
			t.Errorf("%+v: %v failed of %d passes (%v), want %v of %d", tt.plan, got, r.Passes(), r, tt.want, tt.passes)
		}
		if n := testA.Failed() + testB.Failed() - before; n != int64(len(tt.want)) {
			t.Errorf("%+v: points have counted %d failures", tt.plan, n)
		}
	}
}

func TestErrnoIsWhatWasPlanned(t *testing.T) {
	r := Start(Plan{Until: 2})
	_ = r.During(func() error {
		if err := testA.Err(); !errors.Is(err, Odd) {
			t.Errorf("Err = %v", err)
		}
		if e := testA.Errno(); e != Odd {
			t.Errorf("Errno = %v", e)
		}
		if e := testA.Errno(); e != 0 {
			t.Errorf("Errno = %v after the plan's end", e)
		}
		return nil
	})
}

func TestNamesAreUnique(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	New("test: a")
}

func TestPointsCostNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { _ = testA.Err(); _ = testA.Errno() }); n != 0 {
		t.Errorf("%v allocations a pass", n)
	}
}

func BenchmarkPoint(b *testing.B) {
	for b.Loop() {
		if testA.Err() != nil {
			b.Fatal("failed")
		}
	}
}
