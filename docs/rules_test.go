package docs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	ruleHead = regexp.MustCompile(`(?m)^\*\*R(\d+) `)
	ruleTest = regexp.MustCompile("`(TestR(\\d+)[A-Z]\\w*)`")
)

// TestRulesAreHeld holds that the page of the rules has each rule that code cites or a
// test is named after, in their order, and that each names tests of its own that exist.
func TestRulesAreHeld(t *testing.T) {
	page := pages(t)["rules.md"]
	cited, tests := citedRules(t)
	heads := ruleHead.FindAllStringSubmatchIndex(page, -1)
	known := map[string]bool{}
	for i, head := range heads {
		number := page[head[2]:head[3]]
		if number != fmt.Sprint(i+1) {
			t.Errorf("R%s stands in place %d", number, i+1)
		}
		known[number] = true
		text := page[head[0]:]
		if i+1 < len(heads) {
			text = page[head[0]:heads[i+1][0]]
		}
		held := ruleTest.FindAllStringSubmatch(text, -1)
		if len(held) == 0 {
			t.Errorf("R%s names no test", number)
		}
		for _, test := range held {
			if !tests[test[1]] || test[2] != number {
				t.Errorf("R%s names %s, which does not exist, or is of another rule", number, test[1])
			}
		}
	}
	if len(cited) == 0 {
		t.Error("no rule is cited: the walk looks in the wrong place")
	}
	for number, where := range cited {
		if !known[number] {
			t.Errorf("%s cites R%s, which the page does not have", where, number)
		}
	}
}

// citedRules returns the rules that code of the repository cites in brackets or names
// tests after, each with a place, and those tests.
func citedRules(t *testing.T) (cited map[string]string, tests map[string]bool) {
	t.Helper()
	var (
		named    = regexp.MustCompile(`(?m)^func (TestR(\d+)[A-Z]\w*)\(`)
		inBraces = regexp.MustCompile(`\((?:R\d+(?:, | and )?)+\)`)
		number   = regexp.MustCompile(`R(\d+)`)
	)
	cited, tests = map[string]string{}, map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range named.FindAllStringSubmatch(string(text), -1) {
			tests[m[1]], cited[m[2]] = true, path
		}
		for _, m := range inBraces.FindAllString(string(text), -1) {
			for _, n := range number.FindAllStringSubmatch(m, -1) {
				cited[n[1]] = path
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return cited, tests
}
