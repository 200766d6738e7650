// Gonet does what needs Go's network poller: pipes that wait, deadlines,
// children, timers and stdin. It says what it found, the same on every run.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

func main() {
	pipes()
	children()
	signals()
	in, err := io.ReadAll(os.Stdin)
	fmt.Println("stdin", len(in), err)
	clocks()
}

// pipes has eight readers wait at once, and one that gives up.
func pipes() {
	var wg sync.WaitGroup
	sizes := make([]int, 8)
	for i := range sizes {
		r, w, err := os.Pipe()
		if err != nil {
			panic(err)
		}
		wg.Add(2)
		go func() {
			defer wg.Done()
			b, _ := io.ReadAll(r)
			sizes[i] = len(b)
			r.Close()
		}()
		go func() {
			defer wg.Done()
			defer w.Close()
			for n := range 20 {
				w.Write(make([]byte, 5000+i))
				if n%7 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		}()
	}
	wg.Wait()
	fmt.Println("pipes", sizes)
	r, w, _ := os.Pipe()
	defer w.Close()
	_ = r.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, err := r.Read(make([]byte, 1))
	fmt.Println("deadline", os.IsTimeout(err))
}

func children() {
	out, err := exec.Command("/bin/sh", "-c", "echo from a child; exit 3").CombinedOutput()
	fmt.Printf("child %q %v\n", out, err)
	cat := exec.Command("cat")
	in, _ := cat.StdinPipe()
	back, _ := cat.StdoutPipe()
	if err := cat.Start(); err != nil {
		panic(err)
	}
	go func() {
		for i := range 1000 {
			fmt.Fprintln(in, i)
		}
		in.Close()
	}()
	n := 0
	for lines := bufio.NewScanner(back); lines.Scan(); {
		n++
	}
	fmt.Println("lines", n, cat.Wait())
}

func signals() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	_ = syscall.Kill(os.Getpid(), syscall.SIGUSR1)
	fmt.Println("signal", <-c)
}

// clocks reads the clock from several threads: it never goes back.
func clocks() {
	began := time.Now()
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			last := time.Now()
			for range 50000 {
				now := time.Now()
				if now.Before(last) {
					fmt.Println("back by", last.Sub(now))
				}
				last = now
			}
		}()
	}
	wg.Wait()
	<-time.After(10 * time.Millisecond)
	fmt.Println("clock", time.Since(began) >= 10*time.Millisecond, time.Since(began) < 10*time.Minute)
}
