package pager

// A ring is a queue that reuses its memory. Its owner guards it.
type ring[T any] struct {
	items []T // length is a power of two, or zero
	head  int
	n     int
}

func (q *ring[T]) push(v T) {
	if q.n == len(q.items) {
		grown := make([]T, max(16, 2*len(q.items)))
		for i := range q.n {
			grown[i] = q.items[(q.head+i)&(len(q.items)-1)]
		}
		q.items, q.head = grown, 0
	}
	q.items[(q.head+q.n)&(len(q.items)-1)] = v
	q.n++
}

// peek returns the oldest item; there is one.
func (q *ring[T]) peek() T { return q.items[q.head] }

// pop takes the oldest item out; there is one.
func (q *ring[T]) pop() T {
	v := q.items[q.head]
	var none T
	q.items[q.head] = none
	q.head = (q.head + 1) & (len(q.items) - 1)
	q.n--
	return v
}
