package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	testName  = regexp.MustCompile(`\b(Test|Fuzz)[A-Z]\w+(\.\.\.|…)?`)
	anyTest   = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	jsonField = regexp.MustCompile(`json:"(\w+)`)
)

// TestNamedTestsExist holds that a test which a page or a comment of the library
// names is there; "TestTrap01..." is any that begins so.
func TestNamedTestsExist(t *testing.T) {
	names := make(map[string]string) // by name: where
	there := make(map[string]bool)
	err := filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			if e != nil && e.Name() == ".git" {
				return fs.SkipDir
			}
			return err
		}
		isTest := strings.HasSuffix(path, "_test.go")
		if !strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, ".md") {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if isTest {
			for _, match := range anyTest.FindAllStringSubmatch(string(data), -1) {
				there[match[1]] = true
			}
			return nil
		}
		if strings.Contains(path, "testutil") || strings.Contains(path, "layering") {
			return nil // speak of tests in general
		}
		for _, name := range testName.FindAllString(string(data), -1) {
			names[name] = path
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(names) < 50 {
		t.Errorf("only %d tests are named anywhere", len(names))
	}
	for name, path := range names {
		begin := strings.TrimSuffix(strings.TrimSuffix(name, "..."), "…")
		found := there[begin] || begin == "TestRn" // of whatever rule
		for is := range there {
			found = found || begin != name && strings.HasPrefix(is, begin)
		}
		if !found {
			t.Errorf("%s names %s, which is not there", path, name)
		}
	}
}

// TestJSONFieldsAreExplained holds that what the examples write for programs to
// read is explained to people, field by field.
func TestJSONFieldsAreExplained(t *testing.T) {
	for page, sources := range map[string][]string{
		"../examples/sandbox/README.md": {"../examples/sandbox/report.go"},
		"../examples/vmm/README.md": {"../examples/vmm/result.go", "../examples/vmm/live.go", "../examples/vmm/lazy.go",
			"../examples/vmm/measure.go"},
		"uffdhandler.md": {"../examples/uffdhandler/doctor.go"},
	} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, source := range sources {
			data, err := os.ReadFile(source)
			if err != nil {
				t.Fatal(err)
			}
			fields := jsonField.FindAllStringSubmatch(string(data), -1)
			if len(fields) == 0 {
				t.Errorf("%s writes no JSON any more", source)
			}
			for _, field := range fields {
				if !strings.Contains(string(text), "`"+field[1]+"`") {
					t.Errorf("%s does not explain %q of %s", page, field[1], source)
				}
			}
		}
	}
}
