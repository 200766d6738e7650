module github.com/guestmm/guestmm/examples

go 1.26.0

require (
	github.com/guestmm/guestmm v0.0.0
	golang.org/x/sys v0.49.0
)
