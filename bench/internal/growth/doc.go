// Package growth names how a cost grows: the simplest order that fits figures
// measured at growing sizes.
package growth
