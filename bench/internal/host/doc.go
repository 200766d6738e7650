// Package host says on what machine the benchmark runs, and how busy that
// machine was meanwhile.
package host
