// Package chart draws what was measured, as SVG: how costs grow, and how latencies
// are distributed up to their tails.
package chart
