package workload

import "strings"

// A Question is what a group of rows asks, as `-run` takes it and the report is
// ordered by.
type Question struct {
	Name string
	// Asks says what is measured.
	Asks string
	// LeavesOut says what is not, which a reader might take it for.
	LeavesOut string

	prefixes []string // of the names of its rows
}

// Questions returns every question, in the order of the report.
func Questions() []Question { return questions }

var questions = []Question{
	{
		"read", "what copying a few bytes out of guest memory costs when the pages are there, alone and on two cores",
		"faults, and the caller's own use of the bytes", []string{"copy/", "random/areas"},
	},
	{
		"beside-writer", "the same random reads while another goroutine changes that very address space",
		"what the writer gets done meanwhile; the distribution has one reading of the clock in each sample", []string{"random/beside"},
	},
	{
		"fault", "the first access to a page, which takes a frame and zeroes it",
		"the exit of a vCPU that would report the fault, and memory that the host has never backed", []string{"fault/"},
	},
	{
		"map", "a pair of map and unmap of one page beside other areas",
		"touching what was mapped", []string{"map/"},
	},
	{
		"protect", "taking a page's write permission and giving it back, in memory that has been touched: a split and a merge",
		"flushing what vCPUs have cached: none runs", []string{"protect/"},
	},
	{
		"fork", "forking an address space, by what it holds; and with a vCPU running in it",
		"the child's life and end, and what the first writes afterwards cost (cow)", []string{"fork/"},
	},
	{
		"cow", "the first write to a shared page after a fork",
		"the fork itself", []string{"cow/"},
	},
	{
		"uffd", "serving a page fault of another process through userfaultfd, and the bulk calls of the same descriptor",
		"where the content comes from: it is at hand", []string{"uffd/"},
	},
	{
		"snapshot", "how long a live snapshot pauses the guest: everything present is armed",
		"copying the pages afterwards, which goes on beside the guest", []string{"snapshot/"},
	},
	{
		"clone", "from a sealed template to the clone's first exit",
		"discarding the clone, and the faults that it takes later", []string{"clone/"},
	},
	{
		"restore", "a guest that starts before its memory is there, until it has touched all of it",
		"reading the image from a disk: its bytes are in memory", []string{"restore/"},
	},
	{
		"exit", "the end of an address space; and a vCPU's way out of the guest and back in",
		"giving memory back to the host", []string{"exit/"},
	},
	{
		"size", "what an area and a mapped page cost in memory",
		"the pages themselves", []string{"heap/", "table/"},
	},
	{
		"count", "what two cores cannot time: cache lines that readers share and write, and system calls",
		"time", []string{"count/"},
	},
}

// Question returns what the row belongs to.
func (r Row) Question() Question {
	for _, q := range questions {
		for _, prefix := range q.prefixes {
			if strings.HasPrefix(r.Name, prefix) {
				return q
			}
		}
	}
	return Question{}
}

// Unit returns what the row's figures are in: "ns/op", or what is counted.
func (r Row) Unit() string {
	switch {
	case strings.HasPrefix(r.Name, "heap/"):
		return "B/area"
	case strings.HasPrefix(r.Name, "table/"):
		return "B/page"
	case strings.HasPrefix(r.Name, "count/lines"):
		return "lines"
	case strings.HasPrefix(r.Name, "count/"):
		return "calls"
	default:
		return "ns/op"
	}
}
