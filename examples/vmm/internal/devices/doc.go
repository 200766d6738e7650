// Package devices has what of a PC the kernel's KVM has not: a serial port
// (16550A), the clock, and the ports by which a PC is reset. Each is driven by
// reads and writes of its ports and knows nothing of vCPUs. Safe for concurrent use.
package devices
