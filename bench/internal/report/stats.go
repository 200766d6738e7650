package report

import "slices"

// Median returns the middle of values, or the mean of the two middle ones; 0
// of none.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	mid := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[mid]
	}
	return (sorted[mid-1] + sorted[mid]) / 2
}

// Spread returns half the distance between the quartiles, as a share of the
// median: 0.05 reads "half the rounds are within 5 % either way". One round
// that was disturbed does not show in it, as it does not in the median.
func Spread(values []float64) float64 {
	median := Median(values)
	if median == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	quartile := len(sorted) / 4
	return (sorted[len(sorted)-1-quartile] - sorted[quartile]) / 2 / median
}
