//go:build linux

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/guestmm/guestmm/examples/uffdhandler/internal/server"
	"github.com/guestmm/guestmm/uffd/pager"
)

const usage = `usage: uffdhandler -listen SOCK -mem FILE [flags]
       uffdhandler -takeover SOCK -mem FILE [flags]
       uffdhandler doctor [-json]

Serves the page faults of VMs that are restored from FILE, by Firecracker's
protocol, until SIGTERM or SIGINT. doctor says what this host can do.

  -listen SOCK       the socket that VMMs connect to
  -mem FILE          the guests' memory, of whole pages; it must not change
  -workingset FILE   install these pages first, as -record has written them
  -record FILE       write which pages are touched; turns the background fill
                     off unless -fill is given too
  -fill=BOOL         fill the rest of the memory in the background, and let the
                     guest go once all is there (default true)
  -policy POLICY     what becomes of a guest that cannot be served any more:
                     kill      its process is killed (default)
                     standby   another uffdhandler gets it, or else kill
                     park      it waits; pages that cannot be read are tried again
  -standby SOCK      where the other one listens, by its -takeover
                     (default: -listen's with ".standby" behind it)
  -takeover SOCK     take guests over, and the socket of -listen, from an
                     uffdhandler that is stopping or cannot go on
  -once              end when the first client that was served has gone
  -metrics ADDR      serve Prometheus metrics at http://ADDR/metrics; on loopback
                     unless ADDR names a host
  -json              log in JSON
  -v                 log more
  -handshake-timeout D, -standby-wait D, -retry-every D
                     how long a client may take over its message (5s), a standby
                     server is waited for (5s), parked pages rest (1s)
  -h                 print this

The exit status is 0; 1 if it could not start, or with -once if the client was
not served until its end; 2 for wrong flags.
`

var errHelp = flag.ErrHelp

// options are the command line.
type options struct {
	listen, takeOver, standby string
	mem, workingSet, record   string
	policy                    pager.Policy
	lifetime                  server.Lifetime
	background                pager.Background
	metrics                   string
	json, verbose             bool
	handshakeTimeout          time.Duration
	standbyWait, retryEvery   time.Duration
}

var policies = map[string]pager.Policy{"kill": pager.FailGuest, "standby": pager.Standby, "park": pager.Park}

func parseOptions(args []string) (*options, error) {
	o := &options{}
	fs := flag.NewFlagSet("uffdhandler", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	for name, value := range map[string]*string{
		"listen": &o.listen, "takeover": &o.takeOver, "standby": &o.standby, "mem": &o.mem,
		"workingset": &o.workingSet, "record": &o.record, "metrics": &o.metrics,
	} {
		fs.StringVar(value, name, "", "")
	}
	policy := fs.String("policy", "kill", "")
	once, fill := fs.Bool("once", false, ""), fs.Bool("fill", true, "")
	fs.BoolVar(&o.json, "json", false, "")
	fs.BoolVar(&o.verbose, "v", false, "")
	fs.DurationVar(&o.handshakeTimeout, "handshake-timeout", 5*time.Second, "")
	fs.DurationVar(&o.standbyWait, "standby-wait", 5*time.Second, "")
	fs.DurationVar(&o.retryEvery, "retry-every", time.Second, "")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if *once {
		o.lifetime = server.FirstClient
	}
	// What the fill brings before it is touched is in no recording.
	if *fill && (o.record == "" || given["fill"]) {
		o.background = pager.FillAll
	}
	if o.standby == "" && o.listen != "" {
		o.standby = o.listen + ".standby"
		if o.standby == o.takeOver {
			o.standby = "" // this is the standby server
		}
	}
	var known bool
	if o.policy, known = policies[*policy]; !known {
		return nil, fmt.Errorf("-policy %q: want kill, standby or park", *policy)
	}
	var err error
	if o.metrics, err = metricsAddress(o.metrics); err != nil {
		return nil, err
	}
	return o, o.check(fs.Args())
}

func (o *options) check(rest []string) error {
	switch {
	case len(rest) > 0:
		return fmt.Errorf("unexpected %q", rest[0])
	case o.listen == "" && o.takeOver == "":
		return errors.New("-listen or -takeover is needed")
	case o.mem == "":
		return errors.New("-mem is needed")
	case o.listen != "" && o.listen == o.takeOver:
		return errors.New("-listen and -takeover name the same socket")
	case o.policy == pager.Standby && o.standby == "":
		return errors.New("-policy standby needs -standby, another socket than -takeover's")
	case o.handshakeTimeout <= 0 || o.standbyWait <= 0 || o.retryEvery <= 0:
		return errors.New("durations must be positive")
	}
	return nil
}

// metricsAddress makes an address of a port, ":port" or "host:port"; without a
// host it is on loopback.
func metricsAddress(a string) (string, error) {
	if a == "" {
		return "", nil
	}
	if !strings.Contains(a, ":") {
		a = ":" + a
	}
	host, port, err := net.SplitHostPort(a)
	if err != nil {
		return "", fmt.Errorf("-metrics: %w", err)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}
