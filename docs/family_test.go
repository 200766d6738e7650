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
// is there: a test of guestmem or kvm, or an operation that the oracle draws; and that each row
// names something, unless it says that the library has nothing.
func TestFamilyIsHeld(t *testing.T) {
	known := map[string]bool{}
	var files []string
	for _, dir := range []string{"../guestmem", "../kvm"} {
		in, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil || len(in) == 0 {
			t.Fatal(in, err)
		}
		files = append(files, in...)
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

var flagNames = map[string]*regexp.Regexp{
	"../guestmem/map.go":    regexp.MustCompile(`(?m)^\tMap(\w+)\s+MapFlags = 0x`),
	"../guestmem/remap.go":  regexp.MustCompile(`(?m)^\tRemap(\w+)\s+RemapFlags = \d`),
	"../guestmem/advise.go": regexp.MustCompile(`(?m)^\tAdvice(\w+)\s+Advice = \d`),
}

// TestFamilyIsComplete holds that the page has every flag of mmap and mremap, and every
// advice, that the library has, by Linux's name.
func TestFamilyIsComplete(t *testing.T) {
	prefix := map[string]string{"../guestmem/map.go": "MAP_", "../guestmem/remap.go": "MREMAP_", "../guestmem/advise.go": "MADV_"}
	names := map[string]bool{}
	for _, m := range regexp.MustCompile("`((?:MAP|MREMAP|MADV)_[A-Z0-9_]+)`").FindAllStringSubmatch(pages(t)["family.md"], -1) {
		names[strings.ReplaceAll(m[1][strings.Index(m[1], "_"):], "_", "")+prefixOf(m[1])] = true
	}
	for file, re := range flagNames {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found := re.FindAllStringSubmatch(string(text), -1)
		if len(found) < 3 {
			t.Fatalf("%s has %d flags: the names are elsewhere", file, len(found))
		}
		for _, m := range found {
			if !names[strings.ToUpper(m[1])+prefix[file]] {
				t.Errorf("the page does not have %s of %s", m[1], prefix[file])
			}
		}
	}
}

func prefixOf(name string) string { return name[:strings.Index(name, "_")+1] }
