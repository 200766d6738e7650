// Package report turns rounds of figures into what the benchmark prints: the
// median of each contender with its spread, the ratio that the project has set
// itself a goal for, and whether it is met.
//
// A figure that was not measured is never made up: the entry says what is
// missing and why, and its goal counts as not met.
package report
