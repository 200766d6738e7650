package kvm

// PlatformOptions says how a Platform is made. The zero value is usable.
type PlatformOptions struct {
	// MaxVCPUs is how many guest threads run at once; default GOMAXPROCS. More
	// Contexts than vCPUs take turns.
	MaxVCPUs int
	// Quarantine is how many retired table frames wait before a flush makes them
	// usable again; default a sixteenth of the memory's frames, at least 64 and at
	// most 4096.
	Quarantine int
}
