package docs

import (
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// pages returns every page of the project, by path from this directory.
func pages(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]string)
	for _, path := range append(paths, "../README.md", "../CHANGELOG.md") {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		out[path] = string(data)
	}
	return out
}

var goBlock = regexp.MustCompile("(?ms)^```go\n(.*?)^```$")

// TestSnippetsAreExamples holds that each Go snippet of a page is the body of
// an example of this directory, which is compiled and run.
func TestSnippetsAreExamples(t *testing.T) {
	bodies := exampleBodies(t)
	shown := 0
	for path, text := range pages(t) {
		for _, match := range goBlock.FindAllStringSubmatch(text, -1) {
			shown++
			if _, ok := bodies[match[1]]; !ok {
				t.Errorf("%s shows a snippet that is the body of no example:\n%s", path, match[1])
			}
		}
	}
	if shown == 0 {
		t.Error("no page shows any code")
	}
}

// exampleBodies returns the examples by body: as a page shows it, without
// what is set up above a blank comment line and without the output.
func exampleBodies(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("*_example_test.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("examples: %q, %v", files, err)
	}
	out := make(map[string]string)
	for _, file := range files {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, file, src, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range f.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || !strings.HasPrefix(fn.Name.Name, "Example") {
				continue
			}
			body := string(src[set.Position(fn.Body.Lbrace).Offset+1 : set.Position(fn.Body.Rbrace).Offset])
			out[snippet(t, body)] = fn.Name.Name
		}
	}
	return out
}

var (
	output = regexp.MustCompile(`(?s)\n\t// Output:.*`)
	setUp  = regexp.MustCompile(`(?m)^\tas, done := newSpace\(\)\n\tdefer done\(\)\n(\tctx := context\.Background\(\)\n)?\n?`)
)

// snippet is an example's body as pages show it: less indented, without the
// lines that make its address space, and without its output.
func snippet(t *testing.T, body string) string {
	t.Helper()
	body = output.ReplaceAllString(strings.TrimPrefix(body, "\n"), "\n")
	body = setUp.ReplaceAllString(body, "")
	formatted, err := format.Source([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(formatted)), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimPrefix(line, "\t")
	}
	return strings.Join(lines, "\n") + "\n"
}

var link = regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)

func TestLinksLeadSomewhere(t *testing.T) {
	for path, text := range pages(t) {
		for _, match := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(match[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), match[1])); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
}

// TestReadmeNamesEveryPackage holds the package table against the packages
// that there are.
func TestReadmeNamesEveryPackage(t *testing.T) {
	readme := pages(t)["../README.md"]
	for _, name := range packages(t) {
		if !strings.Contains(readme, fmt.Sprintf("| `%s` |", name)) {
			t.Errorf("README.md's table has no row for %s", name)
		}
	}
}

// packages returns those of the library that others may import.
func packages(t *testing.T) (names []string) {
	t.Helper()
	cmd := exec.Command("go", "list", "./...")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for path := range strings.FieldsSeq(string(out)) {
		name := strings.TrimPrefix(path, "github.com/guestmm/guestmm/")
		if !strings.HasPrefix(name, "internal/") && name != "docs" {
			names = append(names, name)
		}
	}
	return names
}

// TestChangelogSaysWhatIsPromised holds that the head of CHANGELOG.md names every
// package, whether it promises stability or not.
func TestChangelogSaysWhatIsPromised(t *testing.T) {
	head, _, _ := strings.Cut(pages(t)["../CHANGELOG.md"], "\n## ")
	for _, name := range packages(t) {
		if !strings.Contains(head, "`"+name+"`") {
			t.Errorf("CHANGELOG.md does not say whether %s promises stability", name)
		}
	}
}
