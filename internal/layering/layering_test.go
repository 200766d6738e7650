package layering

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/guestmm/guestmm"

// layers is the import table, lowest first. A pattern ending in /... also
// matches what is below it, but for what has a line of its own.
var layers = [][]string{
	{"internal/...", "guestmem/addr"},
	{"vmarea", "pagetable", "uffd"},
	{"cow/..."},
	{"guestmem"},
	{"kvm/...", "uffd/pager", "internal/familytest"},
	{"docs"}, // examples of its pages
}

// allowed lists the modules that the library may depend on, with why.
var allowed = map[string]string{
	"golang.org/x/sys":              "system calls",
	"golang.org/x/sync":             "error groups",
	"github.com/google/btree":       "the area tree",
	"github.com/klauspost/cpuid/v2": "what the CPU has, and a guest may be shown",
	"go.uber.org/atomic":            "statistics",
}

// listed is what the tests need of `go list -json`.
type listed struct {
	ImportPath string
	Standard   bool
	Module     *struct{ Path string }
	Imports    []string
	CgoFiles   []string
}

// Every system that the library builds for: build tags choose files, and with
// them imports.
var systems = []string{"linux/amd64", "linux/arm64", "darwin/arm64", "windows/amd64"}

func TestImportsPointDownwards(t *testing.T) {
	for _, system := range systems {
		t.Run(system, func(t *testing.T) {
			packages := list(t, system, "./...")
			if len(packages) == 0 {
				t.Fatal("go list found no package")
			}
			for _, p := range packages {
				for _, problem := range checkImports(p) {
					t.Error(problem)
				}
			}
		})
	}
}

func TestDependenciesAreAllowed(t *testing.T) {
	for _, system := range systems {
		t.Run(system, func(t *testing.T) {
			for _, p := range list(t, system, "-deps", "./...") {
				for _, problem := range checkDependency(p) {
					t.Error(problem)
				}
			}
		})
	}
}

// checkImports holds a package of the library against the import table.
func checkImports(p listed) (problems []string) {
	from, ok := layerOf(p.ImportPath)
	if !ok {
		return []string{p.ImportPath + " stands in no layer: put it into the import table"}
	}
	for _, imported := range p.Imports {
		if imported != module && !strings.HasPrefix(imported, module+"/") {
			continue
		}
		to, ok := layerOf(imported)
		switch {
		case !ok:
			problems = append(problems, fmt.Sprintf("%s imports %s, which stands in no layer", p.ImportPath, imported))
		case imported == module+"/internal/testutil" && p.ImportPath != imported:
			problems = append(problems, fmt.Sprintf("%s imports %s outside its tests", p.ImportPath, imported))
		case to > from, to == from && from > 0 && !sameTree(p.ImportPath, imported):
			problems = append(problems, fmt.Sprintf("%s (layer %d) imports %s (layer %d): imports point downwards only", p.ImportPath, from, imported, to))
		}
	}
	return problems
}

// sameTree reports whether one package is below the other, or both below one
// top directory: kvm and kvm/state.
func sameTree(a, b string) bool {
	top := func(s string) string {
		first, _, _ := strings.Cut(strings.TrimPrefix(s, module+"/"), "/")
		return first
	}
	return top(a) == top(b) && top(a) != "uffd" && top(a) != "guestmem"
}

func layerOf(importPath string) (int, bool) {
	name := strings.TrimPrefix(importPath, module+"/")
	layer, found := 0, false
	for i, patterns := range layers {
		for _, pattern := range patterns {
			tree, isTree := strings.CutSuffix(pattern, "/...")
			switch {
			case name == tree:
				return i, true
			case isTree && !found && strings.HasPrefix(name, tree+"/"):
				layer, found = i, true
			}
		}
	}
	return layer, found
}

// checkDependency holds one package of the library's whole graph against what
// is allowed in it.
func checkDependency(p listed) (problems []string) {
	if p.Standard {
		return nil
	}
	if len(p.CgoFiles) > 0 {
		problems = append(problems, fmt.Sprintf("%s uses cgo: %v", p.ImportPath, p.CgoFiles))
	}
	if p.Module == nil || p.Module.Path == module {
		return problems
	}
	if _, ok := allowed[p.Module.Path]; !ok {
		problems = append(problems, fmt.Sprintf("%s is of module %s, which is not allowed outside tests", p.ImportPath, p.Module.Path))
	}
	return problems
}

func TestCheckImportsFindsViolations(t *testing.T) {
	in := func(name string, imports ...string) listed {
		p := listed{ImportPath: path.Join(module, name)}
		for _, i := range imports {
			if strings.Contains(i, ".") || i == "fmt" {
				p.Imports = append(p.Imports, i)
			} else {
				p.Imports = append(p.Imports, path.Join(module, i))
			}
		}
		return p
	}
	for _, tc := range []struct {
		p    listed
		want int
	}{
		{in("guestmem", "cow", "vmarea", "guestmem/addr", "internal/sys", "fmt", "golang.org/x/sys/unix"), 0},
		{in("kvm", "guestmem", "internal/sys"), 0},
		{in("kvm", "kvm/state"), 0},
		{in("internal/arena", "internal/sys", "guestmem/addr"), 0},
		{in("cow", "pagetable"), 0},
		{in("guestmem", "kvm"), 1},
		{in("guestmem/addr", "guestmem"), 1},
		{in("pagetable", "vmarea"), 1},
		{in("pagetable", "cow"), 1},
		{in("uffd", "uffd/pager"), 1},
		{in("kvm", "uffd/pager"), 1},
		{in("internal/sys", "pagetable"), 1},
		{in("guestmem", "internal/testutil"), 1},
		{in("internal/familytest", "guestmem"), 0},
		{in("guestmem", "internal/familytest"), 1},
		{in("guestmem", "bench"), 1},
		{in("misc"), 1},
		{in(""), 1},
	} {
		if got := checkImports(tc.p); len(got) != tc.want {
			t.Errorf("%s importing %v: got %q, want %d problems", tc.p.ImportPath, tc.p.Imports, got, tc.want)
		}
	}
}

func TestCheckDependencyFindsViolations(t *testing.T) {
	of := func(module string) listed {
		return listed{ImportPath: module + "/p", Module: &struct{ Path string }{module}}
	}
	cgo := of(module)
	cgo.CgoFiles = []string{"c.go"}
	for _, tc := range []struct {
		p    listed
		want int
	}{
		{listed{ImportPath: "fmt", Standard: true}, 0},
		{listed{ImportPath: "runtime/cgo", Standard: true, CgoFiles: []string{"cgo.go"}}, 0},
		{of(module), 0},
		{of("golang.org/x/sys"), 0},
		{of("github.com/google/go-cmp"), 1},
		{cgo, 1},
	} {
		if got := checkDependency(tc.p); len(got) != tc.want {
			t.Errorf("%+v: got %q, want %d problems", tc.p, got, tc.want)
		}
	}
}

// list runs go list in the library's module, as it is without a workspace.
func list(t *testing.T, system string, args ...string) []listed {
	t.Helper()
	goos, goarch, _ := strings.Cut(system, "/")
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Standard,Module,Imports,CgoFiles"}, args...)...)
	cmd.Dir = root(t)
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=1")
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		t.Fatalf("go list: %v\n%s", err, exit.Stderr)
	} else if err != nil {
		t.Fatal(err)
	}
	var packages []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		switch err := dec.Decode(&p); {
		case errors.Is(err, io.EOF):
			return packages
		case err != nil:
			t.Fatal(err)
		}
		if !slices.ContainsFunc(packages, func(q listed) bool { return q.ImportPath == p.ImportPath }) {
			packages = append(packages, p)
		}
	}
}

// root is the directory of the library's module. Tests run in their
// package's directory.
func root(t *testing.T) string {
	t.Helper()
	const dir = "../.."
	data, err := os.ReadFile(path.Join(dir, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(data), "module "+module+"\n") {
		t.Fatalf("%s/go.mod is not the library's", dir)
	}
	return dir
}
