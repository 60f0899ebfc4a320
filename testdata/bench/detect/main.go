// Command detect measures how long after the death of an endpoint nodes still answer it:
// three gslbd processes in three regions that gossip, and an HTTP endpoint here that dies again and again,
// once so that connections are refused, once so that nothing is answered any more.
//
//	go run ./testdata/bench/detect -out testdata/bench/results/detect.md
//
// It must not be over fall × interval + timeout + 1 s; if it is, the exit code is 1.
package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meridian-gslb/meridian/testdata/bench/run"
)

const (
	nodes    = 3
	interval = time.Second
	timeout  = 800 * time.Millisecond
	rise     = 2
	fall     = 2
	bound    = fall*interval + timeout + time.Second

	answered = "192.0.2.1" // the endpoint that dies
	other    = "192.0.2.2" // what is answered then
)

var (
	times = flag.Int("times", 25, "deaths of each kind")
	out   = flag.String("out", "", "`file` for the table")
)

func main() {
	flag.Parse()
	ok, err := measure()
	if err != nil {
		fmt.Fprintln(os.Stderr, "detect:", err)
		os.Exit(1)
	}
	if !ok {
		fmt.Fprintln(os.Stderr, "detect: over the bound")
		os.Exit(1)
	}
}

// death is how the endpoint dies.
type death struct {
	name     string
	die      func(*endpoint)
	gone     []time.Duration // from the death to the last node's last answer with it
	returned []time.Duration // from its return to the last node's first answer with it
}

func measure() (ok bool, err error) {
	dir, err := os.MkdirTemp("", "meridian-bench-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	bin, err := run.Build(dir)
	if err != nil {
		return false, err
	}
	e, err := newEndpoint()
	if err != nil {
		return false, err
	}
	defer e.close()
	askers, stop, err := fleet(bin, dir, e.addr)
	if err != nil {
		return false, err
	}
	deaths := []*death{{name: "connections are refused", die: (*endpoint).close}, {name: "nothing is answered", die: (*endpoint).hang}}
	err = kill(deaths, e, askers)
	for _, a := range askers {
		a.Close()
	}
	if err = errors.Join(err, stop()); err != nil {
		return false, err
	}

	var b strings.Builder
	b.WriteString("# From the death of an endpoint to the last answer with it\n\n")
	b.WriteString("Written by `go run ./testdata/bench/detect -out testdata/bench/results/detect.md`; run it to get these figures again.\n\n")
	fmt.Fprintf(&b, "%d nodes in as many regions that gossip, each a process; interval %v, timeout %v, fall %d, rise %d. The bound is fall × interval + timeout + 1 s = %v.\n",
		nodes, interval, timeout, fall, rise, bound)
	b.WriteString("\n| # |")
	for _, d := range deaths {
		fmt.Fprintf(&b, " %s: gone after s | back after s |", d.name)
	}
	b.WriteString("\n|---|" + strings.Repeat("--:|", 2*len(deaths)) + "\n")
	ok = true
	row := func(name string, of func([]time.Duration) time.Duration) {
		fmt.Fprintf(&b, "| %s |", name)
		for _, d := range deaths {
			fmt.Fprintf(&b, " %.2f | %.2f |", of(d.gone).Seconds(), of(d.returned).Seconds())
		}
		b.WriteString("\n")
	}
	for i := range *times {
		row(fmt.Sprint(i+1), func(ds []time.Duration) time.Duration { return ds[i] })
	}
	row("**median**", run.Median)
	row("**most**", slices.Max[[]time.Duration])
	gone := slices.Concat(deaths[0].gone, deaths[1].gone)
	slices.Sort(gone)
	fmt.Fprintf(&b, "| all %d | median %.2f, p99 %.2f | | | |\n", len(gone), run.Median(gone).Seconds(), gone[(len(gone)*99+99)/100-1].Seconds())
	fmt.Fprintf(&b, "| bound | %.2f | – | %.2f | – |\n\n", bound.Seconds(), bound.Seconds())
	for _, d := range deaths {
		ok = ok && slices.Max(d.gone) <= bound
	}
	b.WriteString("- Gone: until none of the nodes answers it any more; back: until all do. Each node is asked every 5 ms.\n")
	b.WriteString("- The endpoint dies at a random moment of the interval.\n")
	b.WriteString(run.Machine())
	return ok, run.Write(*out, b.String())
}

// kill has the endpoint die and return, as often as is asked for, and notes how long each
// takes to be seen.
func kill(deaths []*death, e *endpoint, askers []*run.Asker) error {
	for i := range *times {
		for _, d := range deaths {
			time.Sleep(rand.N(interval))
			died := time.Now()
			d.die(e)
			if err := all(askers, other); err != nil {
				return fmt.Errorf("after a death: %w", err)
			}
			d.gone = append(d.gone, time.Since(died))
			back := time.Now()
			if err := e.open(); err != nil {
				return err
			}
			if err := all(askers, answered); err != nil {
				return fmt.Errorf("after a return: %w", err)
			}
			d.returned = append(d.returned, time.Since(back))
			fmt.Fprintf(os.Stderr, "%d/%d, %s: gone after %.2f s, back after %.2f s\n", i+1, *times, d.name,
				d.gone[i].Seconds(), d.returned[i].Seconds())
		}
	}
	return nil
}

// all returns once every asker is answered want.
func all(askers []*run.Asker, want string) error {
	const limit = time.Minute
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		seen := 0
		for _, a := range askers {
			if slices.Equal(a.Ask(time.Second), []string{want}) {
				seen++
			}
		}
		if seen == len(askers) {
			return nil
		}
		if time.Since(began) > limit {
			return fmt.Errorf("%d of %d nodes answer %s after %v", seen, len(askers), want, limit)
		}
	}
}

// fleet starts the nodes and returns what asks each, once all answer the endpoint that dies.
func fleet(bin, dir string, endpoint netip.AddrPort) (askers []*run.Asker, stop func() error, err error) {
	var started []*run.Node
	stop = func() error {
		var errs []error
		for _, n := range started {
			errs = append(errs, n.Stop())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, stop())
		}
	}()
	var gossip []string
	for range nodes {
		port, err := run.FreePort()
		if err != nil {
			return nil, nil, err
		}
		gossip = append(gossip, fmt.Sprintf("127.0.0.1:%d", port))
	}
	for i := range nodes {
		port, err := run.FreePort()
		if err != nil {
			return nil, nil, err
		}
		name := filepath.Join(dir, fmt.Sprintf("node%d.yaml", i+1))
		text := fmt.Sprintf(configuration, i+1, [nodes]string{"eu", "us", "ap"}[i], port, gossip[i], `"`+strings.Join(slices.Delete(slices.Clone(gossip), i, i+1), `", "`)+`"`,
			interval, timeout, rise, fall, answered, endpoint.Addr(), endpoint.Port(), other)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			return nil, nil, err
		}
		n, err := run.Start(bin, name)
		if err != nil {
			return nil, nil, err
		}
		started = append(started, n)
		if err := n.Ready(time.Minute); err != nil {
			return nil, nil, err
		}
		a, err := run.NewAsker(fmt.Sprintf("127.0.0.1:%d", port), "www.example.com", netip.MustParsePrefix("198.51.100.0/24"))
		if err != nil {
			return nil, nil, err
		}
		askers = append(askers, a)
	}
	time.Sleep(3 * interval) // until each has heard the others
	return askers, stop, all(askers, answered)
}

const configuration = `node: {name: ns%d, site: %s, dns: ["127.0.0.1:%d"], admin: "127.0.0.1:0", gossip: {listen: %q, join: [%s]}}
sites: {eu: {lat: 50, lon: 8}, us: {lat: 39, lon: -77}, ap: {lat: 1, lon: 104}}
zones: [{name: example.com, records: "$TTL 300\n@ SOA ns hostmaster 1 7200 900 1209600 300\n@ NS ns\nns A 127.0.0.1\n"}]
probes: {web: {http: {path: /healthz}, interval: %v, timeout: %v, rise: %d, fall: %d, damping: {off: true}}} # it dies more often than what may stay in
pools:
  first: {site: eu, probe: web, endpoints: [{address: %s, probe: {address: %s, port: %d}}]}
  second: {site: eu, endpoints: [{address: %s}]}
services: {www.example.com: {pools: {first: {}, second: {}}, policy: [health, {failover: [first, second]}]}}
`

// endpoint is an HTTP server that dies and returns at the same address.
type endpoint struct {
	addr netip.AddrPort

	server *http.Server

	mu   sync.Mutex
	hung chan struct{} // not nil: requests wait until it is closed
}

func newEndpoint() (*endpoint, error) {
	e := &endpoint{addr: netip.MustParseAddrPort("127.0.0.1:0")}
	return e, e.open()
}

// open lets the endpoint answer again.
func (e *endpoint) open() error {
	e.mu.Lock()
	if e.hung != nil {
		close(e.hung)
		e.hung = nil
		e.mu.Unlock()
		return nil
	}
	e.mu.Unlock()
	ln, err := net.Listen("tcp", e.addr.String())
	if err != nil {
		return err
	}
	e.addr = netip.MustParseAddrPort(ln.Addr().String())
	server := &http.Server{Handler: http.HandlerFunc(e.answer)}
	e.server = server
	go server.Serve(ln) // until it is closed
	return nil
}

func (e *endpoint) answer(_ http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	hung := e.hung
	e.mu.Unlock()
	if hung != nil {
		select {
		case <-hung:
		case <-r.Context().Done():
		}
	}
}

// close refuses connections, and cuts those that are there.
func (e *endpoint) close() { e.server.Close() }

// hang takes connections and answers nothing.
func (e *endpoint) hang() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hung = make(chan struct{})
}
