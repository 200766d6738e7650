package layering

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Memory that a userfaultfd serves is known by its address alone (addr.HVA, a
// number), and a plain load or store needs a pointer or a slice. These are the
// only ways to get one from memory outside of the Go heap:
//
//	unsafe.Slice, unsafe.Add, unsafe.String, (*T)(unsafe.Pointer(number))
//	unix.Mmap, which returns a slice, and mmap by number
//	sys.BytesAt, which names an embedder's mapping by a slice
//
// Every file that goes one of them stands here, with the reason why what it
// reaches is never registered. A file that is not listed fails the test, and so
// does an entry that is of no use any more.
var reaches = map[string]string{
	"internal/arena/arena_unsafe.go":            "the alias, or the Go heap: bases come from NewMemfd's mapping, which no Region registers",
	"internal/sys/mapping_unsafe.go":            "names a mapping for munmap and madvise, which take a slice; nothing loads or stores through it but aliases",
	"internal/sys/calls_linux.go":               "maps for its callers, which name each mapping alias or slot; for slots see TestR10SlotsAreNamedAndNotTouched",
	"guestmem/region_host.go":                   "an embedder's mapping, kept as the region's slot: see TestR10SlotsAreNamedAndNotTouched",
	"guestmem/region_unsafe.go":                 "words of a piece of the alias",
	"kvm/uapi_vm_unsafe.go":                     "the dirty ring, which KVM shares; no guest memory",
	"kvm/dirtyring.go":                          "the dirty ring, which KVM shares; no guest memory",
	"kvm/guestmemfd.go":                         "guest_memfd, whose mapping is Go's own and is given to no userfaultfd",
	"kvm/inject.go":                             "struct kvm_run of a vCPU; no guest memory",
	"uffd/probe_linux.go":                       "a number: pages of a probe, reached by system calls alone",
	"uffd/ioctl_linux_unsafe.go":                "a caller's buffer as messages",
	"uffd/pager/shared_linux_unsafe.go":         "the file of a ledger, which no userfaultfd serves",
	"bench/floor/ours_linux.go":                 "a number: nobody touches what is installed and armed",
	"bench/internal/kernelmm/prepare_linux.go":  "memory of a benchmark of the kernel, which no userfaultfd serves",
	"bench/internal/lines/reach_unsafe.go":      "what Go values point to: aliases are among it, and slots are numbers",
	"bench/internal/machine/raw_linux.go":       "memory and shared pages of the vCPUs of a baseline, which no userfaultfd serves",
	"examples/vmm/internal/raw/arm_unsafe.go":   "a mapping that is armed to be timed: no Go code touches it, nor keeps it",
	"examples/vmm/internal/raw/ioctl_unsafe.go": "dirty rings, of the baseline that makes the system calls itself; no userfaultfd serves it",
	"examples/vmm/internal/raw/machine.go":      "memory of that baseline, and the vCPUs' shared pages",
	"examples/vmm/internal/raw/memory.go":       "regions of that baseline",
}

// TestR10EveryWayToMemoryIsListed: there is no plain load or store of registered
// memory in this repository, since there is no pointer to make one with.
func TestR10EveryWayToMemoryIsListed(t *testing.T) {
	found := make(map[string][]string)
	files := token.NewFileSet()
	eachGoFile(t, files, func(rel string, f *ast.File) {
		if isOfTests(rel) {
			return
		}
		for _, way := range waysToMemory(f) {
			found[rel] = append(found[rel], fmt.Sprintf("%v: %s", files.Position(way.pos), way.what))
		}
	})
	if len(found) == 0 {
		t.Fatal("no way to memory found: the walk looks in the wrong place")
	}
	for _, file := range slices.Sorted(maps.Keys(found)) {
		if reaches[file] == "" {
			t.Errorf("%s reaches memory outside of the Go heap. If that is never registered with a userfaultfd, list it with the reason:\n\t%s",
				file, strings.Join(found[file], "\n\t"))
		}
	}
	for file := range reaches {
		if found[file] == nil {
			t.Errorf("%s is listed and goes no way to memory: take it off", file)
		}
	}
}

// isOfTests: what tests touch is their own business; they hang or they do not.
func isOfTests(rel string) bool {
	return strings.HasSuffix(rel, "_test.go") || strings.HasPrefix(rel, "internal/testutil/")
}

type wayToMemory struct {
	pos  token.Pos
	what string
}

// waysToMemory finds where f turns a number or a mapping into something to load
// and store through.
func waysToMemory(f *ast.File) (ways []wayToMemory) {
	add := func(n ast.Node, what string) { ways = append(ways, wayToMemory{n.Pos(), what}) }
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if ok {
			switch pkg, name := nameOf(sel.X), sel.Sel.Name; {
			case pkg == "unsafe" && slices.Contains([]string{"Slice", "Add", "String"}, name),
				(pkg == "unix" || pkg == "syscall") && slices.Contains([]string{"Mmap", "MmapPtr", "MremapPtr", "Mremap", "SysvShmAttach", "SYS_MMAP", "SYS_MMAP2", "SYS_MREMAP", "SYS_SHMAT"}, name),
				pkg == "sys" && name == "BytesAt",
				pkg == "reflect" && (name == "NewAt" || name == "SliceAt"),
				pkg == "reflect" && (name == "SliceHeader" || name == "StringHeader"):
				add(sel, pkg+"."+name)
			}
		}
		call, ok := n.(*ast.CallExpr)
		if ok && len(call.Args) == 1 && isSelector(call.Fun, "unsafe", "Pointer") && mayBeNumber(call.Args[0]) {
			add(call, "unsafe.Pointer of a number")
		}
		return true
	})
	return ways
}

func nameOf(e ast.Expr) string {
	if id, ok := e.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}

func isSelector(e ast.Expr, pkg, name string) bool {
	sel, ok := e.(*ast.SelectorExpr)
	return ok && nameOf(sel.X) == pkg && sel.Sel.Name == name
}

// mayBeNumber reports whether e is an arithmetic expression or a conversion to
// uintptr. An identifier is taken for a pointer: one of type uintptr does not
// pass go vet.
func mayBeNumber(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.BinaryExpr:
		return true
	case *ast.ParenExpr:
		return mayBeNumber(e.X)
	case *ast.CallExpr:
		return nameOf(e.Fun) == "uintptr"
	default:
		return false
	}
}

func TestWaysToMemory(t *testing.T) {
	const src = `package p

import ("unsafe"; "reflect"; "golang.org/x/sys/unix")

func none(p *int, b []byte) (unsafe.Pointer, uintptr, uintptr) {
	_ = unsafe.Sizeof(*p)
	return unsafe.Pointer(p), uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(unsafe.SliceData(b)))
}

func some(h uintptr, b []byte) {
	_ = *(*byte)(unsafe.Pointer(uintptr(h)))
	_ = *(*byte)(unsafe.Pointer((h + 8)))
	_ = unsafe.Slice(&b[0], 7)
	_ = unsafe.Add(unsafe.Pointer(&b[0]), 7)
	_, _ = unix.Mmap(0, 0, 0, 0, 0)
	unix.Syscall6(unix.SYS_MMAP, 0, 0, 0, 0, 0, 0)
	_ = reflect.NewAt(nil, nil)
	f := unix.Mmap
	_ = f
}
`
	files := token.NewFileSet()
	f, err := parser.ParseFile(files, "p.go", src, 0)
	if err != nil {
		t.Fatal(err)
	}
	var lines []int
	for _, way := range waysToMemory(f) {
		lines = append(lines, files.Position(way.pos).Line)
	}
	if want := []int{11, 12, 13, 14, 15, 16, 17, 18}; !slices.Equal(lines, want) {
		t.Errorf("ways in lines %v, want %v", lines, want)
	}
}

// guestmem keeps the mapping that vCPUs use, and that may be registered, as a
// slice, because the system calls that unmap and advise take one. Nothing there
// indexes it, ranges over it, or copies from or to it.
func TestR10SlotsAreNamedAndNotTouched(t *testing.T) {
	files := token.NewFileSet()
	matches, err := filepath.Glob(filepath.Join(root(t), "guestmem", "*.go"))
	if err != nil || len(matches) == 0 {
		t.Fatal(len(matches), err)
	}
	for _, name := range matches {
		if isOfTests(name) {
			continue
		}
		f, err := parser.ParseFile(files, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, pos := range touchesOfSlots(f) {
			t.Errorf("%v: touches a slot: go through the alias, or a system call", files.Position(pos))
		}
	}
}

// touchesOfSlots finds plain accesses to what is selected as .slot, to a part
// of it, and to variables that were given one. Variables go by their names,
// function by function.
func touchesOfSlots(f *ast.File) (out []token.Pos) {
	for _, decl := range f.Decls {
		aliases := slotAliases(decl)
		ast.Inspect(decl, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.IndexExpr:
				if aliases.isSlot(n.X) {
					out = append(out, n.Pos())
				}
			case *ast.RangeStmt:
				if aliases.isSlot(n.X) && n.Value != nil {
					out = append(out, n.Pos())
				}
			case *ast.CallExpr:
				name := nameOf(n.Fun)
				if sel, ok := n.Fun.(*ast.SelectorExpr); ok && slices.Contains([]string{"bytes", "binary", "slices", "hash", "crc32"}, nameOf(sel.X)) {
					name = "copy"
				}
				if slices.Contains([]string{"copy", "append", "clear", "string"}, name) && slices.ContainsFunc(n.Args, aliases.isSlot) {
					out = append(out, n.Pos())
				}
			}
			return true
		})
	}
	return out
}

// aliases are the variables of a function that hold a slot.
type aliases map[string]bool

func slotAliases(decl ast.Decl) aliases {
	a := make(aliases)
	for before := -1; before < len(a); { // an alias of an alias
		before = len(a)
		ast.Inspect(decl, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				if len(n.Lhs) == len(n.Rhs) {
					for i := range n.Rhs {
						a.assign(n.Lhs[i], n.Rhs[i])
					}
				}
			case *ast.ValueSpec:
				for i := range n.Values {
					a.assign(n.Names[i], n.Values[i])
				}
			}
			return true
		})
	}
	return a
}

func (a aliases) assign(to, from ast.Expr) {
	if name := nameOf(to); name != "" && name != "_" && a.isSlot(from) {
		a[name] = true
	}
}

func (a aliases) isSlot(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.Ident:
		return a[e.Name]
	case *ast.SelectorExpr:
		return e.Sel.Name == "slot"
	case *ast.SliceExpr:
		return a.isSlot(e.X)
	case *ast.ParenExpr:
		return a.isSlot(e.X)
	default:
		return false
	}
}

func TestTouchesOfSlots(t *testing.T) {
	const src = `package p

func f(r *region, p []byte) {
	_ = r.host.slot
	_ = len(r.host.slot[1:2])
	advise(r.host.slot[1:2])
	_ = r.host.slot[1]
	copy(p, r.host.slot[1:])
	copy((r.slot), p)
	for _, b := range r.slot { _ = b }
	clear(r.slot[:1])
	_ = bytes.Equal(p, r.slot)
	_ = append(p, r.slot...)
}

func g(r *region, p []byte) {
	s := r.slot[2:]
	var t, u = p, (s)
	_ = u[0]
	_, _ = t[0], len(s)
	clear(s)
	w := p
	w = u[:1]
	copy(p, w)
}

func h(s, u, w []byte) { s[0] = u[0] + w[0] }
`
	files := token.NewFileSet()
	f, err := parser.ParseFile(files, "p.go", src, 0)
	if err != nil {
		t.Fatal(err)
	}
	var lines []int
	for _, pos := range touchesOfSlots(f) {
		lines = append(lines, files.Position(pos).Line)
	}
	if want := []int{7, 8, 9, 10, 11, 12, 13, 19, 21, 24}; !slices.Equal(lines, want) {
		t.Errorf("touches in lines %v, want %v", lines, want)
	}
}

// The fault servers hold numbers and nothing else: no function of theirs gives
// out a pointer into the memory that they serve, or takes one.
func TestR10FaultServersKnowNumbersAlone(t *testing.T) {
	for _, dir := range []string{"uffd", "uffd/pager"} {
		files := token.NewFileSet()
		matches, err := filepath.Glob(filepath.Join(root(t), dir, "*.go"))
		if err != nil || len(matches) == 0 {
			t.Fatalf("%s: %d files, %v", dir, len(matches), err)
		}
		for _, name := range matches {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(files, name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, decl := range f.Decls {
				fn, ok := decl.(*ast.FuncDecl)
				if !ok || fn.Type.Results == nil {
					continue
				}
				for _, result := range fn.Type.Results.List {
					if isSelector(result.Type, "unsafe", "Pointer") {
						t.Errorf("%v: %s returns an unsafe.Pointer", files.Position(fn.Pos()), fn.Name.Name)
					}
				}
			}
		}
	}
}
