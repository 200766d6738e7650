//go:build linux && amd64

package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"
	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/vmm/internal/boot/boottest"
	"github.com/guestmm/guestmm/internal/testutil"
)

// testKernel is testdata/kernel.c, which "make kernel" compiles.
//
//go:embed testdata/kernel.bin
var testKernel []byte

// kernels writes the test kernel in both formats.
func kernels(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{"bzImage": filepath.Join(dir, "bzImage"), "vmlinux": filepath.Join(dir, "vmlinux")}
	write(t, files["bzImage"], boottest.Kernel(testKernel))
	write(t, files["vmlinux"], boottest.Vmlinux(testKernel, 1<<16))
	return files
}

func write(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// initrd writes a cpio archive, and returns what the kernel is to print of it.
func initrd(t *testing.T) (name, want string) {
	t.Helper()
	var b bytes.Buffer
	w := cpio.Newc.Writer(&b)
	for _, r := range []cpio.Record{cpio.Directory("bin", 0o755), cpio.StaticFile("init", "#!/bin/sh\necho hello\n", 0o755)} {
		if err := w.WriteRecord(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	name = filepath.Join(t.TempDir(), "initrd")
	write(t, name, b.Bytes())
	var sum uint64
	for _, c := range b.Bytes() {
		sum = sum*31 + uint64(c)
	}
	return name, fmt.Sprintf("initrd %x %x\n", b.Len(), sum)
}

// TestKernelBoots has the kernel print what it was given, and take interrupts of
// the timer, in each format.
func TestKernelBoots(t *testing.T) {
	testutil.RequireKVM(t)
	rd, wantInitrd := initrd(t)
	for format, file := range kernels(t) {
		got := vmm(t, "", "-kernel", file, "-initrd", rd, "-append", "console=ttyS0 timer", "-mem", "3200M", "-cpus", "3")
		if got.status != statusOK || got.stderr != "" {
			t.Fatalf("%s: %v", format, got)
		}
		for _, want := range []string{
			"kernel is up\n", "header is there\n", "line console=ttyS0 timer\n", wantInitrd, "processors 3 0 0\n", "timer ticks\n", "bye\n",
			"e820 0 9fc00 1\n", "e820 100000 bff00000 1\n", "e820 100000000 8000000 1\n",
		} {
			if !strings.Contains(got.stdout, want) {
				t.Errorf("%s: no %q in %q", format, want, got.stdout)
			}
		}
	}
}

func TestKernelReadsItsConsole(t *testing.T) {
	testutil.RequireKVM(t)
	got := vmm(t, "hello, kernel\nmore\n", "-kernel", kernels(t)["bzImage"], "-append", "echo", "-mem", "64M")
	if got.status != statusOK || !strings.Contains(got.stdout, "say: hello, kernel\nbye\n") {
		t.Error(got)
	}
}

// TestKernelsThatDoNotGoOn has each end that is not a reset say what it was, where, and
// how far the kernel got.
func TestKernelsThatDoNotGoOn(t *testing.T) {
	testutil.RequireKVM(t)
	file := kernels(t)["vmlinux"]
	const last = `the last line is "processors 1 0 0"`
	for word, want := range map[string]string{"stuck": errStuck.Error(), "spin": errSilent.Error(), "triple": errTriple.Error()} {
		args := []string{"-kernel", file, "-append", word, "-mem", "64M"}
		got := ran{}
		if word != "spin" {
			got = vmm(t, "", args...)
		} else {
			// Where others need the processor too, a kernel may be silent for longer than
			// that while it boots.
			for wait := time.Second; wait < patience && !strings.Contains(got.stderr, last); wait *= 2 {
				got = vmm(t, "", append(args, "-patience", wait.String())...)
			}
		}
		if got.status != statusFailed || !strings.Contains(got.stderr, want) || !strings.Contains(got.stderr, "rip 0x100") || !strings.Contains(got.stderr, last) {
			t.Errorf("%s: %v", word, got)
		}
	}
	// An instruction that hosts whose KVM emulates ring 0 do not have: they say so,
	// with its bytes; others go on.
	got := vmm(t, "", "-kernel", file, "-append", "wide", "-mem", "64M")
	isEmulated := got.status == statusFailed && strings.Contains(got.stderr, errEmulation.Error()) && strings.Contains(got.stderr, "cmpxchg16b") && strings.Contains(got.stderr, "480fc70e") &&
		strings.Contains(got.stderr, "emulates")
	isNative := got.status == statusOK && strings.Contains(got.stdout, "bye\n")
	if isEmulated == isNative {
		t.Errorf("wide: %v", got)
	}
	t.Logf("ring 0 is emulated: %v", isEmulated)
}

// TestInterruptedKernel ends a kernel that goes on for ever.
func TestInterruptedKernel(t *testing.T) {
	testutil.RequireKVM(t)
	c := command(t, "-kernel", kernels(t)["bzImage"], "-append", "spin", "-mem", "64M", "-cpus", "2")
	r, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	c.Stderr = &errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len("kernel is up"))
	if _, err := io.ReadFull(r, b); err != nil || string(b) != "kernel is up" {
		t.Fatalf("%q, %v", b, err)
	}
	if err := c.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, r)
	got := finish(t, c, new(bytes.Buffer), &errs)
	if got.status != statusInterrupted || !strings.Contains(got.stderr, "interrupted") {
		t.Error(got)
	}
}

func TestBadKernelFiles(t *testing.T) {
	dir := t.TempDir()
	files := kernels(t)
	good := boottest.Kernel(testKernel)
	path := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		write(t, p, b)
		return p
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	sparse := path("sparse", nil)
	if err := os.Truncate(sparse, 1<<40); err != nil {
		t.Fatal(err)
	}
	header := boottest.Header(len(testKernel))
	header.InitSize = 0xffffffff
	for name, x := range map[string]struct {
		args []string
		want string
	}{
		"none":             {[]string{"-kernel", filepath.Join(dir, "none")}, "no such file"},
		"a directory":      {[]string{"-kernel", dir}, "not a regular file"},
		"a pipe":           {[]string{"-kernel", fifo}, "not a regular file"},
		"empty":            {[]string{"-kernel", path("empty", nil)}, "is empty"},
		"a terabyte":       {[]string{"-kernel", sparse}, "too little guest memory"},
		"text":             {[]string{"-kernel", path("text", []byte("hello"))}, "not a Linux kernel"},
		"truncated":        {[]string{"-kernel", path("cut", good[:len(good)/2])}, "truncated"},
		"cut header":       {[]string{"-kernel", path("head", good[:0x220])}, "truncated"},
		"cut ELF":          {[]string{"-kernel", path("elf", boottest.Vmlinux(testKernel, 0)[:0x1100])}, "truncated"},
		"oversized":        {[]string{"-kernel", path("big", boottest.BzImage(header, testKernel))}, "too little guest memory"},
		"little memory":    {[]string{"-kernel", files["bzImage"], "-mem", "16M"}, "too little guest memory"},
		"no initrd":        {[]string{"-kernel", files["bzImage"], "-initrd", filepath.Join(dir, "none")}, "-initrd"},
		"initrd too large": {[]string{"-kernel", files["bzImage"], "-mem", "64M", "-initrd", path("rd", make([]byte, 60<<20))}, "does not fit"},
		"initrd: terabyte": {[]string{"-kernel", files["bzImage"], "-initrd", sparse}, "too little guest memory"},
		"long line":        {[]string{"-kernel", files["bzImage"], "-append", strings.Repeat("a", 5000)}, "command line"},
	} {
		got := vmm(t, "", x.args...)
		if got.status != statusFailed || got.stdout != "" || !strings.Contains(got.stderr, x.want) {
			t.Errorf("%s: want %q: %v", name, x.want, got)
		}
	}
}
