package cow

import (
	"fmt"

	"github.com/guestmm/guestmm/internal/inject"
)

// Where tests have the pool run out of frames that it has.
var (
	atAlloc  = inject.New("pool: allocate")
	atRefill = inject.New("pool: refill")
)

func (p *Pool) allocSome(out []freeFrame) (int, error) { return p.getAt(atAlloc, out) }

func (p *Pool) refillSome(out []freeFrame) (int, error) { return p.getAt(atRefill, out) }

// getAt is get, behind a point.
func (p *Pool) getAt(at *inject.Point, out []freeFrame) (int, error) {
	if err := at.Err(); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNoMemory, err)
	}
	return p.get(out)
}
