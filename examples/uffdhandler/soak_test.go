//go:build linux && amd64

package main

import (
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"
)

// Guests read, write and give back memory at random, crash, and come anew,
// beside clients that are wrong, while the server is restarted under them again
// and again, with and without a background fill. Each guest checks every byte
// that it reads, and in the end all of its memory.
func TestSoak(t *testing.T) {
	needHost(t)
	rounds := 10
	if *soak {
		rounds = 1000
	}
	const n, seed, guests, ops = 1024, 41, 4, 150
	seed2 := rand.Uint64()
	t.Logf("random seed %d", seed2)
	r := rand.New(rand.NewPCG(seed2, 0))
	sock, mem := socketIn(t), newImage(t, n, seed)
	ways := [2]string{sock + ".1", sock + ".2"}
	server := func(i int) *handler {
		args := []string{"-listen", sock, "-mem", mem, "-policy", "standby", "-standby", ways[(i+1)%2], "-metrics", ":0"}
		if r.IntN(4) > 0 {
			args = append(args, "-fill=false")
		}
		if i == 0 {
			return startHandler(t, "listening", args...)
		}
		return startHandler(t, "waiting for guests to take over", append(args, "-takeover", ways[i%2])...)
	}
	h := server(0)
	all := make([]*client, guests)
	for i := range all {
		all[i] = restored(t, whole(sock, n, seed))
	}
	var wrong []string
	for name := range evils {
		if evils[name] != "timeout" {
			wrong = append(wrong, name)
		}
	}
	faults := 0.0
	for round := 1; round <= rounds; round++ {
		for _, v := range all {
			v.tell("random %d %d", ops, r.Uint64())
		}
		c := whole(sock, n, seed)
		c.Evil = []string{wrong[r.IntN(len(wrong))]}
		bad := start(t, c)
		killed := r.IntN(3) == 0
		if killed {
			all[0].cmd.Process.Kill() // wherever it is
		}
		if round%2 == 0 {
			faults += h.metrics()[`uffdhandler_faults_total{kind="missing"}`]
			next := server(round / 2)
			h.signal(unix.SIGTERM)
			h.ends(0)
			h = next
			h.waitFor("listening")
		}
		bad.wants("ok")
		bad.quits()
		for i, v := range all {
			switch {
			case i == 0 && killed:
				v.endsWell()
			case r.IntN(4) == 0:
				v.wants("ok")
				v.does("verify")
				v.quits()
			default:
				v.wants("ok")
				continue
			}
			all[i] = restored(t, whole(sock, n, seed))
		}
	}
	for _, v := range all {
		v.does("verify")
		v.quits()
	}
	faults += h.metrics()[`uffdhandler_faults_total{kind="missing"}`]
	h.stop()
	t.Logf("%v faults in %d rounds", faults, rounds)
}

// endsWell wants a VMM that is being killed to find nothing wrong until then.
func (v *client) endsWell() {
	v.t.Helper()
	for got := range v.answers {
		if got != "ok" {
			v.t.Fatalf("the VMM says %q", got)
		}
	}
}
