// Goprof profiles itself, and says whether the function that spends its time is in
// the profile.
package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"runtime/pprof"
	"time"
)

var sink uint64

//go:noinline
func burn(until time.Time) {
	x := uint64(1)
	for time.Now().Before(until) {
		for range 100000 {
			x = x*6364136223846793005 + 1442695040888963407
		}
	}
	sink += x
}

func main() {
	// On a busy machine little of a second may be this program's.
	for range 20 {
		var profile bytes.Buffer
		if err := pprof.StartCPUProfile(&profile); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		burn(time.Now().Add(300 * time.Millisecond))
		pprof.StopCPUProfile()
		z, err := gzip.NewReader(&profile)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		raw, err := io.ReadAll(z)
		if err == nil && bytes.Contains(raw, []byte("main.burn")) {
			fmt.Println("burn is in the profile")
			return
		}
	}
	fmt.Println("burn is not in the profile")
	os.Exit(1)
}
