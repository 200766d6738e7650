package layering

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// traps is how many things the kernel does that handlers of page faults get
// wrong. The package comments of uffd and uffd/pager list them with what is
// done about each.
const traps = 15

// A row of a table of traps: its number, and at the end the test.
var trapRow = regexp.MustCompile(`(?m)^(?:([ \d]\d)|  )  \S.*\s(Test\w+)(\.\.\.)?$`)

// TestTrapsHaveTests: each trap stands in a table and has a test by its number,
// and the tables name no test that is not there.
func TestTrapsHaveTests(t *testing.T) {
	tests := make(map[string]bool)
	numbered, listed := make(map[int]bool), make(map[int]bool)
	var rows [][]string
	for _, dir := range []string{"uffd", "uffd/pager"} {
		matches, err := filepath.Glob(filepath.Join(root(t), dir, "*.go"))
		if err != nil || len(matches) == 0 {
			t.Fatalf("%s: %d files, %v", dir, len(matches), err)
		}
		for _, name := range matches {
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case filepath.Base(name) == "doc.go":
				rows = append(rows, trapRow.FindAllStringSubmatch(strings.ReplaceAll(f.Doc.Text(), "\t", ""), -1)...)
			case strings.HasSuffix(name, "_test.go"):
				for _, decl := range f.Decls {
					if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
						tests[fn.Name.Name] = true
						if number, ok := strings.CutPrefix(fn.Name.Name, "TestTrap"); ok && len(number) > 2 {
							n, _ := strconv.Atoi(number[:2])
							numbered[n] = true
						}
					}
				}
			}
		}
	}
	for _, row := range rows {
		if n, err := strconv.Atoi(strings.TrimSpace(row[1])); err == nil {
			listed[n] = true
		}
		name, isPrefix := row[2], row[3] != ""
		if !slices.ContainsFunc(slices.Collect(maps.Keys(tests)), func(test string) bool {
			return test == name || isPrefix && strings.HasPrefix(test, name)
		}) {
			t.Errorf("a table of traps names %s, which is no test", name)
		}
	}
	for n := 1; n <= traps; n++ {
		if !listed[n] {
			t.Errorf("trap %d stands in no table", n)
		}
		if !numbered[n] {
			t.Errorf("trap %d has no test", n)
		}
	}
}
