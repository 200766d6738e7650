package layering

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// TestUnsafeStaysInItsFiles holds that unsafe is imported, and symbols are
// linked by name, in *_unsafe.go files alone (and *_unsafe_test.go), in every
// module of the repository.
func TestUnsafeStaysInItsFiles(t *testing.T) {
	files, found := token.NewFileSet(), 0
	eachGoFile(t, files, func(name string, f *ast.File) {
		if !imports(f, "unsafe") {
			return
		}
		found++
		if !mayUseUnsafe(name) && !onlySizesInTest(name, f) {
			t.Errorf("%s imports unsafe: move its use to a *_unsafe.go file", name)
		}
		for _, pos := range withoutReason(f) {
			t.Errorf("%v: unsafe is used without a // SAFETY: comment", files.Position(pos))
		}
	})
	if found == 0 {
		t.Error("no file imports unsafe: the walk looks in the wrong place")
	}
}

// eachGoFile parses every Go file of the repository, of all modules, and hands it
// on with its name from the root.
func eachGoFile(t *testing.T, files *token.FileSet, fn func(name string, f *ast.File)) {
	t.Helper()
	err := filepath.WalkDir(root(t), func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, ".go"):
			return nil
		}
		f, err := parser.ParseFile(files, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root(t), name)
		if err == nil {
			fn(filepath.ToSlash(rel), f)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func mayUseUnsafe(name string) bool {
	return strings.HasSuffix(name, "_unsafe.go") || strings.HasSuffix(name, "_unsafe_test.go")
}

// onlySizesInTest reports whether f is a test that asks for the layout of
// types and nothing else.
func onlySizesInTest(name string, f *ast.File) bool {
	if !strings.HasSuffix(name, "_test.go") {
		return false
	}
	for _, decl := range f.Decls {
		if firstUse(decl).IsValid() {
			return false
		}
	}
	return true
}

func imports(f *ast.File, path string) bool {
	for _, spec := range f.Imports {
		if spec.Path.Value == `"`+path+`"` {
			return true
		}
	}
	return false
}

// withoutReason returns the first use of unsafe in each function that has no
// SAFETY comment in it or in its doc.
func withoutReason(f *ast.File) []token.Pos {
	var out []token.Pos
	for _, decl := range f.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok || fn.Body == nil {
			continue // a type or a signature does nothing by itself
		}
		if use := firstUse(fn.Body); use.IsValid() && !hasReason(f, fn) {
			out = append(out, use)
		}
	}
	return out
}

// firstUse returns where node first names anything of unsafe but the layout
// of a type.
func firstUse(node ast.Node) token.Pos {
	use := token.NoPos
	ast.Inspect(node, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok || use.IsValid() {
			return true
		}
		if pkg, ok := sel.X.(*ast.Ident); !ok || pkg.Name != "unsafe" {
			return true
		}
		switch sel.Sel.Name {
		case "Sizeof", "Offsetof", "Alignof":
		default:
			use = sel.Pos()
		}
		return true
	})
	return use
}

func hasReason(f *ast.File, fn *ast.FuncDecl) bool {
	start := fn.Pos()
	if fn.Doc != nil {
		start = fn.Doc.Pos()
	}
	for _, group := range f.Comments {
		if group.Pos() >= start && group.End() <= fn.End() && strings.Contains(group.Text(), "SAFETY:") {
			return true
		}
	}
	return false
}

func TestWithoutReason(t *testing.T) {
	const src = `package p

import "unsafe"

// SAFETY: p is a pointer.
func a(p *int) unsafe.Pointer { return unsafe.Pointer(p) }

func b(p *int) unsafe.Pointer {
	// SAFETY: p is a pointer.
	return unsafe.Pointer(p)
}

func c(p *int) unsafe.Pointer { return unsafe.Pointer(p) }

const size = unsafe.Sizeof(0)
`
	files := token.NewFileSet()
	f, err := parser.ParseFile(files, "p.go", src, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	got := withoutReason(f)
	if len(got) != 1 || files.Position(got[0]).Line != 13 {
		t.Errorf("got %d uses, want the one of line 13", len(got))
	}
}
