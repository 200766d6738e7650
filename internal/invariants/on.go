//go:build invariants || race

package invariants

// Enabled reports that this build checks its invariants.
const Enabled = true
