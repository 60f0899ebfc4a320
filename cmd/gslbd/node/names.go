package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/meridian-gslb/meridian/gslb/config"
)

const (
	nameTimeout = 2 * time.Second // for one answer of a resolver
	nameLeast   = 5 * time.Second // names are asked for again no sooner,
	nameMost    = time.Hour       // and no later, whatever their TTL
	nameRetry   = 5 * time.Minute // the longest pause after failures
	maxNames    = 1024            // that are looked up
	maxLookups  = 8               // at once
	maxAddrs    = 16              // of a name and a family
)

// names looks up the hostnames of pools that lie outside our zones, for services that cannot
// answer with an alias: in the background, so that no query waits. What does not resolve any more
// keeps the addresses that it had.
type names struct {
	n       *Node
	servers []string // host:port of resolvers; none: the system's
	current atomic.Pointer[map[string][]netip.Addr]

	mu    sync.Mutex
	known map[string]*knownName
}

// knownName is a name and what is known of it.
type knownName struct {
	addrs []netip.Addr // the last that were good, in order
	next  time.Time    // when to look again
	fails int          // in a row
	fault error        // the last one; nil: none
	busy  bool
}

func newNames(n *Node, resolvers []netip.AddrPort) *names {
	x := &names{n: n, known: map[string]*knownName{}}
	for _, r := range resolvers {
		x.servers = append(x.servers, r.String())
	}
	return x
}

// all returns the addresses by name, for a snapshot.
func (x *names) all() map[string][]netip.Addr {
	if m := x.current.Load(); m != nil {
		return *m
	}
	return nil
}

// run looks names up until ctx ends.
func (x *names) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	room := make(chan struct{}, maxLookups)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if v := x.n.build.lastView(); v != nil {
			for _, name := range x.due(v.Objects, time.Now()) {
				select {
				case room <- struct{}{}:
				case <-ctx.Done():
					return nil
				}
				wg.Go(func() {
					defer func() { <-room }()
					addrs, ttl, err := lookUp(ctx, x.servers, name)
					if ctx.Err() == nil {
						x.learn(name, addrs, ttl, err, time.Now())
					}
				})
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// due forgets the names that no pool has any more, and returns those that are to be looked up now.
func (x *names) due(o *config.Objects, now time.Time) []string {
	wanted := outsideNames(o)
	x.mu.Lock()
	defer x.mu.Unlock()
	gone := false
	maps.DeleteFunc(x.known, func(name string, _ *knownName) bool {
		_, found := slices.BinarySearch(wanted, name)
		gone = gone || !found
		return !found
	})
	if gone {
		x.publishLocked()
	}
	var due []string
	for _, name := range wanted {
		k := x.known[name]
		if k == nil {
			k = &knownName{}
			x.known[name] = k
		}
		if !k.busy && !now.Before(k.next) {
			k.busy = true
			due = append(due, name)
		}
	}
	return due
}

// outsideNames returns the hostnames, in order, of pools without endpoints that a service at the
// apex of a zone may choose, and that lie in none of our zones.
func outsideNames(o *config.Objects) []string {
	seen := map[string]bool{}
	pools := map[string]bool{}
	for name, s := range o.Services {
		if _, apex := o.Zones[name]; apex {
			for pool := range s.Pools {
				pools[pool] = true
			}
		}
	}
	for pool := range pools {
		p := o.Pools[pool]
		name := config.CanonicalName(p.Hostname)
		if name == "" || len(p.Endpoints) > 0 || len(seen) >= maxNames {
			continue
		}
		inside := false
		for zone := range o.Zones {
			inside = inside || dns.IsSubDomain(dns.Fqdn(zone), dns.Fqdn(name))
		}
		if !inside {
			seen[name] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// learn takes what a look-up came to.
func (x *names) learn(name string, addrs []netip.Addr, ttl time.Duration, err error, now time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	k := x.known[name]
	if k == nil {
		return // no pool has it any more
	}
	k.busy = false
	if err != nil {
		pause := min(nameLeast<<min(k.fails, 10), nameRetry)
		k.next = now.Add(pause - rand.N(pause/4)) // not all at once
		k.fails++
		if k.fault == nil || k.fault.Error() != err.Error() {
			x.n.log.Warn("the hostname of a pool does not resolve", "name", name, "keeps", k.addrs, "err", err)
		}
		k.fault = err
		return
	}
	k.fails, k.fault = 0, nil
	k.next = now.Add(min(max(ttl, nameLeast), nameMost))
	if !slices.Equal(k.addrs, addrs) {
		k.addrs = addrs
		x.publishLocked()
	}
}

// publishLocked hands the addresses to the next snapshot.
func (x *names) publishLocked() {
	m := map[string][]netip.Addr{}
	for name, k := range x.known {
		if len(k.addrs) > 0 {
			m[name] = k.addrs
		}
	}
	x.current.Store(&m)
	x.n.build.wake()
}

// faults says in a sentence each which names do not resolve.
func (x *names) faults() (out []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(x.known)) {
		switch k := x.known[name]; {
		case k.fault == nil:
		case len(k.addrs) > 0:
			out = append(out, fmt.Sprintf("hostname %s does not resolve, its last addresses stay: %v", name, k.fault))
		default:
			out = append(out, fmt.Sprintf("hostname %s does not resolve: %v", name, k.fault))
		}
	}
	return out
}

// lookUp asks resolvers, one after the other until one answers, for the addresses of name, and
// how long they hold. It is an error if there is none.
func lookUp(ctx context.Context, servers []string, name string) (addrs []netip.Addr, ttl time.Duration, err error) {
	if len(servers) == 0 {
		c, err := dns.ClientConfigFromFile("/etc/resolv.conf")
		if err != nil {
			return nil, 0, err
		}
		for _, s := range c.Servers {
			servers = append(servers, net.JoinHostPort(s, c.Port))
		}
	}
	ttl = nameMost
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		var m *dns.Msg
		if m, err = askAny(ctx, servers, name, qtype); err != nil {
			return nil, 0, err
		}
		found := 0
		for _, rr := range m.Answer {
			var ip net.IP
			switch rr := rr.(type) {
			case *dns.A:
				ip = rr.A
			case *dns.AAAA:
				ip = rr.AAAA
			}
			ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second) // also of the aliases before
			addr, ok := netip.AddrFromSlice(ip)
			if addr = addr.Unmap(); ok && rr.Header().Rrtype == qtype && !addr.IsUnspecified() && !addr.IsMulticast() && found < maxAddrs {
				addrs = append(addrs, addr)
				found++
			}
		}
	}
	if len(addrs) == 0 {
		return nil, 0, errors.New("it has no address")
	}
	slices.SortFunc(addrs, netip.Addr.Compare) // resolvers turn them round
	return slices.Compact(addrs), ttl, nil
}

// askAny returns the answer of the first server that gives one: addresses, or that there is none.
func askAny(ctx context.Context, servers []string, name string, qtype uint16) (*dns.Msg, error) {
	err := errors.New("there is no resolver")
	for _, server := range servers {
		q := new(dns.Msg)
		q.SetQuestion(dns.Fqdn(name), qtype)
		q.SetEdns0(dns.DefaultMsgSize, false)
		limit, cancel := context.WithTimeout(ctx, nameTimeout)
		m, _, fault := (&dns.Client{Timeout: nameTimeout}).ExchangeContext(limit, q, server)
		if fault == nil && m.Truncated {
			m, _, fault = (&dns.Client{Net: "tcp", Timeout: nameTimeout}).ExchangeContext(limit, q, server)
		}
		cancel()
		switch {
		case fault != nil:
			err = fmt.Errorf("resolver %s: %w", server, fault)
		case len(m.Question) != 1 || m.Question[0].Qtype != qtype || !strings.EqualFold(m.Question[0].Name, dns.Fqdn(name)):
			err = fmt.Errorf("resolver %s: answers another question", server)
		case m.Rcode == dns.RcodeNameError:
			return nil, fmt.Errorf("resolver %s: there is no such name", server)
		case m.Rcode != dns.RcodeSuccess:
			err = fmt.Errorf("resolver %s: %s", server, dns.RcodeToString[m.Rcode])
		default:
			return m, nil
		}
	}
	return nil, err
}
