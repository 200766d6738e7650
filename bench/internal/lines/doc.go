// Package lines finds out which cache lines an operation writes to, by watching
// from another core all the memory that can be reached from some Go values.
//
// Two readers scale if there is no line that both write. That is counted here where
// there are too few cores to time it: with each reader alone, the words that were
// ever seen to differ from what they were before are collected, and the lines of
// both are compared. A lock that is taken and let go leaves no trace behind, which
// is why the words are looked at meanwhile, again and again.
//
// What it does not see: memory behind maps' tables, channels, functions' closures
// and unsafe pointers, slices of more than 64 KiB, and words that are changed and
// put back faster than they are looked at every time. It is evidence and no proof:
// it shows that lines are shared, and makes it likely that none are.
package lines
