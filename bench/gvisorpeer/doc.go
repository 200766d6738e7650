// Command gvisorpeer measures gVisor's memory manager for guestmm's benchmark.
//
// It is a process of its own because gVisor's module is large and has
// requirements that the library should not inherit; `go run ./bench` builds
// it on demand. It reads requests from its standard input, one JSON object a
// line, and answers each on its standard output, as package workload says.
//
// The manager runs on a platform that maps nothing: what is measured is
// pkg/sentry/mm and pkg/sentry/pgalloc, through their exported API, without
// the cost of any way to run guest code. guestmm's software rows have no vCPU
// either. The difference that remains is in guestmm's disfavour: its page
// tables are complete where gVisor's platform would still have to build them.
package main
