// Package invariants says whether this build checks its invariants.
//
// Enabled is a constant, so that a check under it costs nothing when it is
// off. It is on under the build tags `invariants` and `race`. Under it batches
// shrink, pools drop at random and retired frames are filled with a pattern,
// so that rare paths are common in tests. MayYield, under them, stands between
// two steps whose order matters; torture tests have goroutines descheduled there.
package invariants
