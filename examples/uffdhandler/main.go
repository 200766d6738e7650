//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/guestmm/guestmm/examples/uffdhandler/internal/metrics"
	"github.com/guestmm/guestmm/examples/uffdhandler/internal/progress"
	"github.com/guestmm/guestmm/examples/uffdhandler/internal/server"
	"github.com/guestmm/guestmm/uffd/pager"
)

// Exit statuses.
const (
	statusFailed = 1 // it could not start; with -once: the client was not served until its end
	statusUsage  = 2
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the exit.
func run(args []string, stdout io.Writer, stderr *os.File) int {
	if len(args) > 0 && args[0] == "doctor" {
		return doctor(args[1:], stdout, stderr)
	}
	o, err := parseOptions(args)
	switch {
	case errors.Is(err, errHelp):
		fmt.Fprint(stdout, usage)
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "uffdhandler: %v (-h lists the flags)\n", err)
		return statusUsage
	}
	// Signals are caught before anything is there that they should clean up.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	if err := serve(o, signals, stderr); err != nil {
		fmt.Fprintf(stderr, "uffdhandler: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
		return statusFailed
	}
	return 0
}

func serve(o *options, signals <-chan os.Signal, stderr *os.File) error {
	image, err := openFile(o.mem)
	if err != nil {
		return err
	}
	defer image.Close()
	so, err := serverOptions(o, image)
	if err != nil {
		return err
	}
	out := io.Writer(stderr)
	if term.IsTerminal(int(stderr.Fd())) {
		bar := progress.New(stderr)
		so.Progress, so.Ended, out = bar.Update, bar.Remove, bar
	}
	so.Log = newLog(o, out)
	so.Metrics = metrics.New()
	stopMetrics, err := serveMetrics(o.metrics, so.Metrics, so.Log)
	if err != nil {
		return err
	}
	defer stopMetrics()
	s, err := server.New(so)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	force, cancelForce := context.WithCancel(context.Background())
	defer cancelForce()
	go func() {
		for _, c := range []struct {
			cancel context.CancelFunc
			says   string
		}{{cancel, "stopping"}, {cancelForce, "stopping at once"}} {
			select {
			case sig := <-signals:
				so.Log.Info("signal", "signal", sig.String(), "action", c.says)
				c.cancel()
			case <-force.Done():
				return
			}
		}
	}()
	return s.Run(ctx, force)
}

// serverOptions opens what the flags name.
func serverOptions(o *options, image *os.File) (server.Options, error) {
	so := server.Options{
		Listen: o.listen, TakeOver: o.takeOver, Standby: o.standby,
		Record: o.record, Policy: o.policy, Lifetime: o.lifetime, Background: o.background,
		HandshakeTimeout: o.handshakeTimeout, StandbyWait: o.standbyWait, RetryEvery: o.retryEvery,
	}
	source, err := pager.NewFileSource(image, 0, 0)
	if err != nil {
		return so, fmt.Errorf("%s: %w", o.mem, err)
	}
	so.Source = source
	if so.Image, err = pager.ImageIdentity(context.Background(), source); err != nil {
		return so, fmt.Errorf("%s: %w", o.mem, err)
	}
	if o.workingSet == "" {
		return so, nil
	}
	f, err := openFile(o.workingSet)
	if err != nil {
		return so, err
	}
	defer f.Close()
	if so.WorkingSet, err = pager.ReadWorkingSet(f); err != nil {
		return so, fmt.Errorf("%s: %w", o.workingSet, err)
	}
	return so, nil
}

// openFile opens a regular file for reading. To open a FIFO would wait for who writes
// to it, and what a device has cannot be asked for its size.
func openFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: %w", path, errNotRegular)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

var errNotRegular = errors.New("not a regular file")

func newLog(o *options, out io.Writer) *slog.Logger {
	ho := &slog.HandlerOptions{Level: slog.LevelInfo}
	if o.verbose {
		ho.Level = slog.LevelDebug
	}
	if o.json {
		return slog.New(slog.NewJSONHandler(out, ho))
	}
	return slog.New(slog.NewTextHandler(out, ho))
}

// serveMetrics serves them at address, if there is one, until the function that
// it returns is called.
func serveMetrics(address string, m *metrics.Metrics, log *slog.Logger) (stop func(), err error) {
	if address == "" {
		return func() {}, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", m.Handler())
	const slowest = 10 * time.Second
	hs := &http.Server{Handler: mux, ReadHeaderTimeout: slowest, WriteTimeout: slowest,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := hs.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics", "err", err)
		}
	}()
	log.Info("metrics", "address", l.Addr().String())
	return func() {
		hs.Close()
		<-done
	}, nil
}
