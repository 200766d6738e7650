package growth

import (
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
)

// A Curve is what one contender came to.
type Curve struct {
	Name   string
	Points []Point
	// Missing says why there are no points, or no more; else empty.
	Missing string
}

// A Growth is one series as measured: the curves of all who took part.
type Growth struct {
	Name, What, Of string
	Curves         []Curve
	// Noisy says at which sizes the machine was busy; else empty.
	Noisy string
}

// Write writes a series as a table: a line for each contender, a column for each
// size, and the order that fits.
func (g Growth) Write(w io.Writer) error {
	fmt.Fprintf(w, "growth/%s: %s\n", g.Name, g.What)
	var sizes []float64
	for _, c := range g.Curves {
		if len(c.Points) > len(sizes) {
			sizes = sizes[:0]
			for _, p := range c.Points {
				sizes = append(sizes, p.N)
			}
		}
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "  %s", g.Of)
	for _, n := range sizes {
		fmt.Fprintf(tw, "\t%s", group(int64(n)))
	}
	fmt.Fprintln(tw, "\torder")
	for _, c := range g.Curves {
		fmt.Fprintf(tw, "  %s", c.Name)
		at := make(map[float64]float64)
		for _, p := range c.Points {
			at[p.N] = p.Cost
		}
		for _, n := range sizes {
			if cost, ok := at[n]; ok {
				fmt.Fprintf(tw, "\t%s", Duration(cost))
			} else {
				fmt.Fprint(tw, "\t-")
			}
		}
		fmt.Fprintf(tw, "\t%s\n", Find(c.Points))
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("growth: %w", err)
	}
	for _, c := range g.Curves {
		if c.Missing != "" {
			fmt.Fprintf(w, "  %s: %s\n", c.Name, c.Missing)
		}
	}
	if g.Noisy != "" {
		fmt.Fprintf(w, "  ~ %s\n", g.Noisy)
	}
	return nil
}

// Duration writes nanoseconds with three digits.
func Duration(ns float64) string {
	switch {
	case ns >= 1e9:
		return fmt.Sprintf("%.3g s", ns/1e9)
	case ns >= 1e6:
		return fmt.Sprintf("%.3g ms", ns/1e6)
	case ns >= 1e3:
		return fmt.Sprintf("%.3g µs", ns/1e3)
	default:
		return fmt.Sprintf("%.3g ns", ns)
	}
}

func format1(v float64) string { return strconv.FormatFloat(v, 'f', 1, 64) }

// group writes 1000000 as "1 000 000", and powers of two from a mebi on by their
// prefix.
func group(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 40, "Ti"}, {1 << 30, "Gi"}, {1 << 20, "Mi"}} {
		if n >= u.size && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + " " + u.name
		}
	}
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + " " + s[i:]
	}
	return s
}
