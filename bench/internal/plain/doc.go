// Package plain has the two memory managers that one writes first, as baselines:
// correct, in pure Go, in few lines.
//
//	NewBTree    areas in a google/btree, under one RWMutex for each space
//	NewPageMap  no areas: a map of pages says of each what may be done with it
//
// Both keep the pages that are there in a map, each a 4 KiB object of Go's heap with a
// count of the spaces that share it. A fork copies areas and map, and a write to a
// shared page copies the page. They have no page tables: nothing but Go code could
// read their memory.
package plain
