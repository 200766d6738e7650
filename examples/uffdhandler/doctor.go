//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/guestmm/guestmm/uffd"
)

// finding is a line of the report, as JSON.
type finding struct {
	Name   string `json:"name"`
	Status string `json:"status"`
	Detail string `json:"detail,omitempty"`
	Cure   string `json:"cure,omitempty"`
}

// doctor prints what this host can and cannot do, and returns 0 if it can serve
// at all.
func doctor(args []string, stdout, stderr io.Writer) int {
	asJSON := false
	for _, a := range args {
		switch strings.TrimLeft(a, "-") {
		case "json":
			asJSON = true
		case "h", "help":
			fmt.Fprint(stdout, usage)
			return 0
		default:
			fmt.Fprintf(stderr, "uffdhandler doctor: %q is no flag of it\n", a)
			return statusUsage
		}
	}
	report := uffd.Report()
	if err := printReport(stdout, report, asJSON); err != nil {
		fmt.Fprintf(stderr, "uffdhandler doctor: %v\n", err)
		return statusFailed
	}
	if !report.CanServe() {
		return statusFailed
	}
	return 0
}

func printReport(w io.Writer, report uffd.Checks, asJSON bool) error {
	if !asJSON {
		verdict := "this host can serve page faults"
		if !report.CanServe() {
			verdict = "this host cannot serve page faults"
		}
		_, err := fmt.Fprintf(w, "%s%s\n", report, verdict)
		return err
	}
	findings := make([]finding, len(report))
	for i, c := range report {
		findings[i] = finding{c.Name, c.Status.String(), c.Detail, c.Cure}
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(struct {
		CanServe bool      `json:"can_serve"`
		Checks   []finding `json:"checks"`
	}{report.CanServe(), findings})
}
