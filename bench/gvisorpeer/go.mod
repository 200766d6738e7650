module github.com/guestmm/guestmm/bench/gvisorpeer

go 1.26.3

require (
	github.com/guestmm/guestmm/bench v0.0.0
	gvisor.dev/gvisor v0.0.0-20260905035102-160fafc42237
)

require (
	github.com/HdrHistogram/hdrhistogram-go v1.4.0 // indirect
	golang.org/x/exp v0.0.0-20250711185948-6ae5c78190dc // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/time v0.15.0 // indirect
	google.golang.org/protobuf v1.36.11 // indirect
)

// Built from a checkout only, with GOWORK=off: gVisor's requirements must not
// reach the library's. It shares bench/internal/workload with the runner.
replace (
	github.com/guestmm/guestmm => ../..
	github.com/guestmm/guestmm/bench => ..
)
