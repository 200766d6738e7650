package profile

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/google/pprof/profile"
)

// WritePprof writes a compressed profile for "go tool pprof".
func (r *Recorder) WritePprof(w io.Writer) error {
	p := &profile.Profile{
		SampleType: []*profile.ValueType{
			{Type: "exits", Unit: "count"}, {Type: "time", Unit: "nanoseconds"}, {Type: "pages", Unit: "count"},
		},
		DefaultSampleType: "time",
		TimeNanos:         r.began.UnixNano(),
		DurationNanos:     int64(time.Since(r.began)),
	}
	locations := make(map[Place]*profile.Location)
	location := func(at Place) *profile.Location {
		if l := locations[at]; l != nil {
			return l
		}
		id := uint64(len(p.Function) + 1)
		f := &profile.Function{ID: id, Name: at.label()}
		l := &profile.Location{ID: id, Line: []profile.Line{{Function: f}}}
		p.Function, p.Location = append(p.Function, f), append(p.Location, l)
		locations[at] = l
		return l
	}
	for _, row := range r.rows() {
		stack := []*profile.Location{location(Place{Group: row.Group, Name: row.Name}), location(Place{Group: row.Group})}
		if row.Detail != "" {
			stack = append([]*profile.Location{location(row.Place)}, stack...)
		}
		p.Sample = append(p.Sample, &profile.Sample{
			Location: stack, Value: []int64{int64(row.Count), int64(row.Time), int64(row.Pages)},
		})
	}
	return p.Write(w)
}

// label is the innermost name. The details of different areas are different
// functions of the same name.
func (p Place) label() string {
	switch {
	case p.Detail != "":
		return p.Detail
	case p.Name != "":
		return p.Name
	}
	return p.Group
}

type row struct {
	Place
	Sum
}

// rows returns what has been recorded: by group, the most expensive first.
func (r *Recorder) rows() (rows []row) {
	for at, s := range r.Sums() {
		rows = append(rows, row{at, s})
	}
	order := map[string]int{Guest: 0, Syscalls: 1, Faults: 2}
	slices.SortFunc(rows, func(a, b row) int {
		return cmp.Or(
			cmp.Compare(order[a.Group], order[b.Group]), cmp.Compare(b.Time, a.Time),
			cmp.Compare(a.Name, b.Name), cmp.Compare(a.Detail, b.Detail),
		)
	})
	return rows
}

// WriteTable writes a table for people.
func (r *Recorder) WriteTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	rows := r.rows()
	group := ""
	for _, row := range rows {
		if row.Group != group {
			group = row.Group
			var all Sum
			for _, other := range rows {
				if other.Group == group {
					all.Count, all.Time, all.Pages = all.Count+other.Count, all.Time+other.Time, all.Pages+other.Pages
				}
			}
			fmt.Fprintf(t, "count\ttime\teach\tpages\t %s\n", group)
			line(t, all, "all")
		}
		name := row.Name
		if row.Detail != "" {
			name = row.Detail + "  " + name
		}
		line(t, row.Sum, name)
	}
	return t.Flush()
}

func line(w io.Writer, s Sum, name string) {
	each := time.Duration(0)
	if s.Count > 0 {
		each = s.Time / time.Duration(s.Count)
	}
	fmt.Fprintf(w, "%d\t%v\t%v\t%d\t %s\n", s.Count, s.Time.Round(time.Microsecond), each.Round(100*time.Nanosecond), s.Pages, name)
}
