package testutil

import "testing"

// Each caller has its pages on top of the others', and the pool is as before at the end.
func TestHugePages(t *testing.T) {
	number := func(name string) int {
		n, err := poolNumber(name)
		if err != nil {
			t.Skip(err)
		}
		return n
	}
	NoHugePages(t) // nobody else changes it meanwhile
	before := number("nr_hugepages")
	t.Run("grown", func(t *testing.T) {
		for n := 1; n <= 2; n++ {
			require(t, needHugePages, growPool(t, n))
		}
		if got := number("nr_hugepages"); got != before+3 {
			t.Errorf("the pool has %d pages, before it had %d", got, before)
		}
		if got := number("free_hugepages"); got < 3 {
			t.Errorf("%d pages are free", got)
		}
	})
	if got := number("nr_hugepages"); got != before {
		t.Errorf("the pool has %d pages, before it had %d", got, before)
	}
}
