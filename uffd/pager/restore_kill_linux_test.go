package pager

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// restoreForever restores a file, touches pages, and ends the restore, which writes a
// working set, until it is killed.
func restoreForever(path string) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	for round := 0; ; round++ {
		f, err := snapfile.Open(path, snapfile.OpenOptions{})
		fail(err)
		m, err := guestmem.NewMemory(guestmem.MemoryOptions{})
		fail(err)
		r, err := StartRestore(context.Background(), m, f, RestoreOptions{OnFailure: Park, Rest: Rest(round % 2), RecordFor: -1})
		fail(err)
		p := make([]byte, smallPage)
		for i := range addr.GPA(20) {
			at := addr.GPA(1<<20) + (i*31+addr.GPA(round)*7)%512*smallPage
			_, err := m.ReadAt(p, at)
			fail(err)
			if !bytes.Equal(p, savedPage(at)) {
				fail(fmt.Errorf("page %v holds %x", at, head(p)))
			}
		}
		fail(r.Close())
		fail(m.Close())
		fail(f.Close())
		if round == 0 {
			fmt.Println("once")
		}
	}
}

// TestRestoringProcessIsKilled: whenever a process that restores a guest is killed,
// the next one can do so, with the working set that the file has then.
func TestRestoringProcessIsKilled(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDMissingShmem)
	kills := 8
	if *soak {
		kills = 500
	}
	img := twoRegions(512)
	path := save(t, img, snapfile.Options{})
	rnd := rand.New(rand.NewPCG(9, 9))
	plan, err := json.Marshal(childPlan{Restore: path})
	must(t, err)
	for range kills {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), childEnv+"="+string(plan))
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		said := make(chan error, 1)
		go func() {
			_, err := out.Read(make([]byte, 8))
			said <- err
		}()
		if err := testutil.Proceeds(t, said, "process that restores"); err != nil {
			t.Errorf("it ends by itself: %v: %s", err, stderr.String())
		}
		time.Sleep(time.Duration(rnd.IntN(20_000)) * time.Microsecond) // the moment that it is killed at
		cmd.Process.Kill()
		cmd.Wait()
		if stderr.Len() > 0 {
			t.Error(stderr.String())
		}
		m := newMemory(t)
		f := openSaved(t, path)
		r := startRestore(t, m, f, RestoreOptions{WorkingSets: ReplayOnly, RecordFor: -1})
		if err := r.WorkingSetErr(); err != nil || r.Replayed() == 0 {
			t.Errorf("the working set: %v, %d pages", err, r.Replayed())
		}
		wantAll(t, m, img)
		waitRestored(t, r)
		must(t, f.Verify(context.Background(), nil))
	}
	// What killed processes have left goes with the next set that is written.
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".guest.snap"+WorkingSetSuffix+"-*"))
	must(t, err)
	old := time.Now().Add(-2 * staleAfter)
	for _, name := range left {
		must(t, os.Chtimes(name, old, old))
	}
	stale := filepath.Join(filepath.Dir(path), ".guest.snap"+WorkingSetSuffix+"-123")
	must(t, os.WriteFile(stale, nil, 0o600))
	must(t, os.Chtimes(stale, old, old))
	must(t, saveWorkingSet(path+WorkingSetSuffix, &WorkingSet{Pages: 1}))
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".guest.snap*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
