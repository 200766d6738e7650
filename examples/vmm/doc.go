// Vmm is a small VMM on guestmm: guest-physical memory in regions, KVM slots kept
// equal to it, dirty pages by log and by ring, the state of a whole guest, templates
// and clones, live snapshots, forks, and restores before the memory is there.
//
//	go run ./examples/vmm
//
// runs a guest of its own, which keeps writing a pattern that it checks itself,
// through all of these, and prints how long each step took beside the same system
// calls made directly. With -kernel it boots Linux to its serial console. README.md has
// the rest.
package main
