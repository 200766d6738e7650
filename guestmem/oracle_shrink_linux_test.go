//go:build amd64

package guestmem

import (
	"flag"
	"testing"
	"time"
)

// shrinkTime is for who reads what was found; who only wants to know whether something
// was, need not wait for it.
var shrinkTime = flag.Duration("oracle.shrink", 40*time.Second, "how long TestOracle may take to shorten a sequence that differs")

// shrink finds a shorter and simpler sequence that still differs: it drops runs
// of operations, then makes arguments plainer, each time on both sides afresh.
// "" is returned where nothing differs when run one by one.
func shrink(tb testing.TB, path string, k *kernelHost, s sequence, ops []op) ([]op, string) {
	until := time.Now().Add(*shrinkTime)
	try := func(ops []op) string {
		if k.err != nil {
			k = newConfiguredHost(tb, path, s.window)
		}
		return s.replay(k, ops)
	}
	best := try(ops)
	if best == "" {
		return ops, ""
	}
	for changed := true; changed && time.Now().Before(until); {
		changed = false
		for size := max(1, len(ops)/2); size > 0; size /= 2 {
			for i := 0; i+size <= len(ops) && time.Now().Before(until); {
				fewer := append(append([]op(nil), ops[:i]...), ops[i+size:]...)
				if diff := try(fewer); diff != "" {
					ops, best, changed = fewer, diff, true
				} else {
					i += size
				}
			}
		}
		for i := range ops {
			for _, plainer := range simpler(ops[i]) {
				if !time.Now().Before(until) {
					break
				}
				other := append([]op(nil), ops...)
				other[i] = plainer
				if diff := try(other); diff != "" {
					ops, best, changed = other, diff, true
					break
				}
			}
		}
	}
	return ops, best
}

// simpler lists plainer variants of an operation, the plainest first.
func simpler(o op) (out []op) {
	add := func(change func(*op)) {
		p := o
		change(&p)
		if p != o {
			out = append(out, p)
		}
	}
	if o.kind != opFork {
		add(func(p *op) { p.data = 2 })
	}
	add(func(p *op) { p.space = 0 })
	if o.kind == opMap {
		add(func(p *op) { p.object, p.off, p.flags = 0, 0, p.flags|MapAnonymous })
		add(func(p *op) { p.off = 0 })
		add(func(p *op) { p.flags &= MapShared | MapPrivate | MapFixed | MapAnonymous })
		add(func(p *op) { p.prot = rw })
	}
	add(func(p *op) { p.length = page })
	add(func(p *op) { p.length = (p.length + page - 1) &^ (page - 1) })
	add(func(p *op) { p.at = p.at.RoundDown() })
	return out
}
