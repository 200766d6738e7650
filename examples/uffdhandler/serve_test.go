//go:build linux && amd64

package main

import (
	"path/filepath"
	"testing"

	"github.com/guestmm/guestmm/internal/testutil"
)

// whole is a VMM whose memory is the whole image, in two regions.
func whole(socket string, nPages, seed uint64) vmmConfig {
	half := nPages / 2
	return vmmConfig{Socket: socket, Seed: seed, Regions: []vmmRegion{{0, half}, {half, nPages - half}}}
}

func socketIn(t *testing.T) string { return filepath.Join(t.TempDir(), "s") }

func TestServesEveryWayOfShakingHands(t *testing.T) {
	needHost(t)
	const n, seed = 256, 3
	sock, mem := socketIn(t), newImage(t, n, seed)
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem)
	before := h.fds()
	base := whole(sock, n, seed)
	for name, change := range map[string]func(*vmmConfig){
		"as Firecracker":         func(*vmmConfig) {},
		"late descriptor":        func(c *vmmConfig) { c.LateFD = true },
		"in pieces":              func(c *vmmConfig) { c.Split = true },
		"memfd too":              func(c *vmmConfig) { c.Extra = true },
		"pid, fd and length":     func(c *vmmConfig) { c.Claim = true },
		"unknown members":        func(c *vmmConfig) { c.Unknown = true },
		"page_size_kib in bytes": func(c *vmmConfig) { c.OldName = true },
		"many regions": func(c *vmmConfig) {
			c.Regions = nil
			for p := range uint64(n / 2) {
				c.Regions = append(c.Regions, vmmRegion{2 * p, 1})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := base
			change(&c)
			v := restored(t, c)
			v.does("check 3 1")
			v.does("balloon 5 9")
			v.does("write 7 2 99")
			v.does("verify")
			v.quits()
		})
	}
	h.keepsNoMoreThan(before)
	h.stop()
}

func TestHugePages(t *testing.T) {
	needHost(t)
	const n, seed = 1024, 5
	sock, mem := socketIn(t), newImage(t, n, seed)
	c := vmmConfig{Socket: sock, Seed: seed, Regions: []vmmRegion{{0, n}}, HugePage: true}
	testutil.HugePages(t, n*page>>21)
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem)
	v := restored(t, c)
	v.does("verify")
	v.does("write 513 4 12")
	v.does("verify")
	v.quits()
	h.stop()
}

func TestManyClientsAtOnce(t *testing.T) {
	needHost(t)
	const n, seed, clients = 512, 11, 16
	sock, mem := socketIn(t), newImage(t, n, seed)
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem, "-metrics", "127.0.0.1:0")
	before := h.fds()
	var all []*client
	for range clients {
		all = append(all, start(t, whole(sock, n, seed)))
	}
	for _, v := range all {
		v.wants("ok")
	}
	for i, v := range all {
		v.tell("random 60 %d", i)
	}
	for _, v := range all {
		v.wants("ok")
		v.tell("verify")
	}
	for i, v := range all {
		v.wants("ok")
		if i%2 == 0 {
			v.quits()
			continue
		}
		v.tell("crash")
		v.dies()
	}
	h.waitFor("ended", clients)
	h.keepsNoMoreThan(before)
	m := h.metrics()
	if got := m[`uffdhandler_clients_total{outcome="served"}`]; got != clients {
		t.Errorf("%v clients were served, want %d", got, clients)
	}
	h.stop()
}

// With -once the server goes with its first client, and not before.
func TestOnce(t *testing.T) {
	needHost(t)
	const n, seed = 256, 4
	sock, mem := socketIn(t), newImage(t, n, seed)
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem, "-once")
	bad := restored(t, vmmConfig{Socket: sock, Evil: []string{"not JSON"}, Regions: []vmmRegion{{0, 1}}})
	bad.quits()
	v := restored(t, whole(sock, n, seed))
	v.does("verify")
	if h.hasEnded() {
		t.Fatal("the server has ended before its client")
	}
	v.quits()
	h.ends(0)
}

// The fill ends, and from then on nobody needs the server.
func TestTheFillEnds(t *testing.T) {
	needHost(t)
	const n, seed = 512, 6
	sock, mem := socketIn(t), newImage(t, n, seed)
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem)
	v := restored(t, whole(sock, n, seed))
	if e := h.waitFor("ended")[0]; e["outcome"] != "complete" {
		t.Errorf("the guest has ended by %v, want complete", e["outcome"])
	}
	h.stop() // with the policy kill, which is for who still needs the server
	v.does("verify")
	v.does("balloon 0 100")
	v.does("verify")
	v.quits()
}
