package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/guestmm/guestmm/bench/internal/report"
)

// Between these lines of a page stands what the last kept result says, and nothing
// else.
const (
	quoteBegins = "<!-- figures of the last kept result, by make bench-readme -->\n"
	quoteEnds   = "<!-- end of figures -->\n"
)

// quoteIn writes the figures of the last result below kept into a page.
func quoteIn(page, kept string) error {
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	before, _, after, err := cutQuote(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", page, err)
	}
	quoted, err := quoteOf(kept, filepath.Dir(page))
	if err != nil {
		return err
	}
	if quoted == "" {
		return fmt.Errorf("no result is kept below %s: make bench-keep makes one", kept)
	}
	return os.WriteFile(page, []byte(before+quoteBegins+quoted+quoteEnds+after), 0o644)
}

// cutQuote returns what a page quotes, and what is around it and its marks.
func cutQuote(page string) (before, quoted, after string, err error) {
	before, rest, begins := strings.Cut(page, quoteBegins)
	quoted, after, ends := strings.Cut(rest, quoteEnds)
	if !begins || !ends {
		err = errors.New("it has no lines between which figures go")
	}
	return before, quoted, after, err
}

// quoteOf returns what a page in dir is to say of the last result below kept; nothing
// if there is none.
func quoteOf(kept, dir string) (string, error) {
	last, err := lastKept(kept)
	if err != nil || last == "" {
		return "", err
	}
	rows, err := os.Open(filepath.Join(last, "rows.json"))
	if err != nil {
		return "", err
	}
	defer rows.Close()
	entries, err := report.ReadJSON(rows)
	if err != nil {
		return "", fmt.Errorf("%s: %w", rows.Name(), err)
	}
	path := filepath.Join(last, "table.txt")
	table, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	link, err := relative(dir, path)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	if err := report.WriteQuote(&out, hostOf(string(table)), filepath.ToSlash(link), entries); err != nil {
		return "", fmt.Errorf("%s: %w", last, err)
	}
	return out.String(), nil
}

// relative is the path of a file as seen from dir, whatever both are relative to.
func relative(dir, file string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if file, err = filepath.Abs(file); err != nil {
		return "", err
	}
	return filepath.Rel(dir, file)
}

// lastKept returns the directory of the last result: their names begin with dates.
func lastKept(root string) (string, error) {
	found, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	for _, entry := range slices.Backward(found) {
		if entry.IsDir() {
			return filepath.Join(root, entry.Name()), nil
		}
	}
	return "", nil
}

// hostOf is a sentence's worth of a table's header.
func hostOf(table string) string {
	var parts []string
	for _, name := range []string{"cpu", "kernel", "go", "date"} {
		for line := range strings.Lines(table) {
			if value, ok := strings.CutPrefix(line, fmt.Sprintf("%-8s", name)); ok {
				value, _, _ = strings.Cut(strings.TrimSpace(value), ", GOMAXPROCS")
				switch name {
				case "kernel":
					value = "Linux " + value
				case "date":
					value, _, _ = strings.Cut(value, " ")
				}
				parts = append(parts, value)
				break
			}
		}
	}
	return strings.Join(parts, "; ")
}
