//go:build linux && amd64

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/guestmm/guestmm/examples/sandbox/internal/picture"
	"github.com/guestmm/guestmm/guestmem"
)

// pictureFormat tells from a file's name what is to be drawn.
func pictureFormat(file string) (picture.Format, error) {
	switch strings.ToLower(filepath.Ext(file)) {
	case ".svg":
		return picture.SVG, nil
	case ".html", ".htm":
		return picture.HTML, nil
	}
	return 0, fmt.Errorf("-map %q: want a file that ends in .svg or .html", file)
}

// drawMap writes what all address spaces are made of.
func drawMap(file string, m *guestmem.Memory, program []string) error {
	format, err := pictureFormat(file)
	if err != nil {
		return err
	}
	// In this order: taking the figures gives back what only waits for that.
	stats := m.Stats()
	layout := m.Layout()
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(picture.Write(f, format, "sandbox "+strings.Join(program, " "), layout, stats), f.Close())
}
