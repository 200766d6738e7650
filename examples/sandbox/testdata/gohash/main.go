// Command gohash keeps 8 goroutines hashing, with garbage to collect and loops
// that only a signal can preempt, and prints what they come to.
package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
)

const workers = 8

// node is garbage with pointers, so that a collector that misses one shows.
type node struct {
	left, right *node
	sum         [sha256.Size]byte
}

func grow(depth int, seed byte) *node {
	n := &node{sum: sha256.Sum256([]byte{seed, byte(depth)})}
	if depth > 0 {
		n.left, n.right = grow(depth-1, seed+1), grow(depth-1, seed+2)
	}
	return n
}

func (n *node) fold(h []byte) []byte {
	if n == nil {
		return h
	}
	s := sha256.Sum256(append(n.right.fold(n.left.fold(h)), n.sum[:]...))
	return s[:]
}

// spin has no call in its loop: the scheduler needs SIGURG to get the thread.
func spin(n uint64) (x uint64) {
	for x = 88172645463325252; n > 0; n-- {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return x
}

func work(seed byte, rounds int) []byte {
	var h []byte
	for i := range rounds {
		h = grow(8, seed+byte(i)).fold(h)
		h = strconv.AppendUint(h, spin(200_000), 16)
		buf := make([]byte, 64<<10)
		for j := range buf {
			buf[j] = byte(j) * seed
		}
		s := sha256.Sum256(append(buf, h...))
		h = s[:]
	}
	return h
}

func main() {
	rounds := 12
	if len(os.Args) > 1 {
		rounds, _ = strconv.Atoi(os.Args[1])
	}
	var sums [workers][]byte
	var all sync.WaitGroup
	for i := range workers {
		all.Go(func() { sums[i] = work(byte(i), rounds) })
	}
	collected := make(chan bool)
	go func() {
		for range 5 {
			runtime.GC()
		}
		close(collected)
	}()
	all.Wait()
	<-collected
	for i, h := range sums {
		fmt.Printf("%d %x\n", i, h)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if m.NumGC < 5 {
		fmt.Println("too few collections:", m.NumGC)
	}
}
