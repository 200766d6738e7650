package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	heldBy   = regexp.MustCompile("`((?:op|Test)[A-Za-z0-9]+)`")
	testFunc = regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
	opEntry  = regexp.MustCompile(`(?m)^\t\t(op\w+):\s+\{"`)
)

// TestFamilyIsHeld holds that what the page on the mmap family names as holding a row
// is there: a test of guestmem, or an operation that the oracle draws; and that each row
// names something, unless it says that the library has nothing.
func TestFamilyIsHeld(t *testing.T) {
	known := map[string]bool{}
	files, err := filepath.Glob("../guestmem/*_test.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, re := range []*regexp.Regexp{testFunc, opEntry} {
			for _, m := range re.FindAllStringSubmatch(string(text), -1) {
				known[m[1]] = true
			}
		}
	}
	rows := 0
	for line := range strings.Lines(pages(t)["family.md"]) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 5 || strings.HasPrefix(cells[0], "-") || strings.TrimSpace(cells[0]) == "call" {
			continue
		}
		rows++
		names := heldBy.FindAllStringSubmatch(cells[4], -1)
		if len(names) == 0 && !strings.Contains(cells[3], "not there yet") {
			t.Errorf("nothing holds %s", cells[0])
		}
		for _, n := range names {
			if !known[n[1]] {
				t.Errorf("%s is held by %s, which does not exist", cells[0], n[1])
			}
		}
	}
	if rows < 30 {
		t.Errorf("the page has %d rows", rows)
	}
}
