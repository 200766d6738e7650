package profile

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/pprof/profile"
)

func recorded() *Recorder {
	r := NewRecorder()
	r.Add(Place{Syscalls, "read", ""}, time.Millisecond, 0)
	r.Add(Place{Syscalls, "read", ""}, time.Millisecond, 0)
	r.Add(Place{Faults, "[heap]", "write zero"}, 3*time.Microsecond, 1)
	r.Add(Place{Faults, "[stack]", "write zero"}, 5*time.Microsecond, 2)
	r.Add(Place{Guest, "until system call", ""}, time.Second, 0)
	return r
}

func TestOffCostsNothing(t *testing.T) {
	var r *Recorder
	if n := testing.AllocsPerRun(100, func() { r.Add(Place{Syscalls, "read", ""}, 1, 0) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestPprof(t *testing.T) {
	var b bytes.Buffer
	if err := recorded().WritePprof(&b); err != nil {
		t.Fatal(err)
	}
	p, err := profile.Parse(&b)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.CheckValid(); err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, s := range p.Sample {
		var names []string
		for _, l := range s.Location {
			names = append(names, l.Line[0].Function.Name)
		}
		got[strings.Join(names, "<")] = s.Value[0]*1e12 + s.Value[1]
	}
	for stack, want := range map[string]int64{
		"read<syscalls": 2e12 + 2e6, "write zero<[heap]<faults": 1e12 + 3e3,
		"write zero<[stack]<faults": 1e12 + 5e3, "until system call<guest": 1e12 + 1e9,
	} {
		if got[stack] != want {
			t.Errorf("%s is %d, want %d; all: %v", stack, got[stack], want, got)
		}
	}
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	if err := recorded().WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"guest\n", "syscalls\n", "faults\n", "2   2ms   1ms      0 read\n", "write zero  [heap]\n"} {
		if !strings.Contains(b.String(), part) {
			t.Errorf("the table lacks %q:\n%s", part, &b)
		}
	}
}

func TestConcurrentAdds(t *testing.T) {
	r := NewRecorder()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				r.Add(Place{Syscalls, "write", ""}, 1, 1)
			}
		})
	}
	wg.Wait()
	if s := r.Sums()[Place{Syscalls, "write", ""}]; s != (Sum{8000, 8000, 8000}) {
		t.Errorf("%+v", s)
	}
}
