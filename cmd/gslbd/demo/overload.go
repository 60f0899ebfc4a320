package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// An overload: users near a region ask for twice what its frontend has capacity for, each by
// the answer that DNS gave it, which it keeps for its TTL. The proxies send what is over the
// capacity to the next region at their next word from the config server; the users move as
// their answers expire.

const (
	overloadUsers  = 40 // each in a /24 of its own
	overloadFactor = 2
	overloadFor    = 40 * time.Second // four TTLs
	// overloadWindow is how long requests are counted to tell a rate; overloadSlack is what
	// chance adds to it: the proxies choose at random by weight.
	overloadWindow = time.Second
	overloadSlack  = 1.15
	visitTimeout   = 10 * time.Second
)

// Overload is what came of one.
type Overload struct {
	Site     string  `json:"site"`
	Capacity float64 `json:"capacity"` // of the site's frontend, requests per second
	Asked    float64 `json:"asked"`    // by the users, requests per second in the mean
	Requests int64   `json:"requests"`
	Failed   int64   `json:"failed"`
	Settled  float64 `json:"settled"` // seconds until a window began in which no frontend was above its capacity; below 0: never
	Peak     float64 `json:"peak"`    // the most that the site's frontend was asked for, requests per second
	Moved    float64 `json:"moved"`   // share of the users that DNS had sent elsewhere in the end, 0..1
	Users    int     `json:"users"`
	First    float64 `json:"firstMoved"` // seconds until the first had moved; below 0: none had
	Event    string  `json:"event"`      // as the node near the users says it, at the end
}

// String is the overload in a few lines.
func (o *Overload) String() string {
	settled := "never"
	if o.Settled >= 0 {
		settled = fmt.Sprintf("%.1f s after it began", o.Settled)
	}
	first := "none"
	if o.First >= 0 {
		first = fmt.Sprintf("the first after %.1f s", o.First)
	}
	return fmt.Sprintf("%s: %.0f requests a second for a frontend that takes %.0f\n          no frontend above its capacity: %s; the most was %.0f/s\n          requests: %d, of which %d failed\n          users that DNS has moved: %.0f %% of %d, %s",
		o.Site, o.Asked, o.Capacity, settled, o.Peak, o.Requests, o.Failed, 100*o.Moved, o.Users, first)
}

// user is somebody near a region, with the answer of DNS that it has.
type user struct {
	prefix  netip.Prefix
	addrs   []netip.Addr
	expires time.Time
}

// overload lets users near r ask for so many requests a second for a while, and tells what
// comes of it. Only one runs at a time.
func (d *Demo) overload(ctx context.Context, r region, rate float64, length time.Duration) (*Overload, error) {
	users := make([]*user, overloadUsers)
	first := r.users.As4()
	for i := range users {
		users[i] = &user{prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{first[0], first[1], first[2] + byte(i), 0}), 24)}
		if err := users[i].resolve(ctx, d.ports, r); err != nil {
			return nil, err
		}
		// They came at different times, and so their answers end at different times.
		users[i].expires = time.Now().Add(time.Duration(rand.Float64() * float64(time.Until(users[i].expires))))
	}
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	var sent, failed, moved atomic.Int64
	var wg sync.WaitGroup
	client := &http.Client{Timeout: visitTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: overloadUsers}}
	defer client.CloseIdleConnections()
	start := time.Now()
	for _, u := range users {
		wg.Go(func() {
			u.visit(ctx, d, r, client, time.Duration(float64(overloadUsers)/rate*float64(time.Second)), &sent, &failed, &moved)
		})
	}
	out := d.observe(ctx, r, start, &moved)
	wg.Wait()
	out.Asked = float64(sent.Load()) / time.Since(start).Seconds()
	out.Requests, out.Failed, out.Moved = sent.Load(), failed.Load(), float64(moved.Load())/overloadUsers
	return out, nil
}

// visit requests pages until ctx ends, one each interval.
func (u *user) visit(ctx context.Context, d *Demo, r region, client *http.Client, interval time.Duration, sent, failed, moved *atomic.Int64) {
	away := false
	select { // not all at once
	case <-time.After(time.Duration(rand.Float64() * float64(interval))):
	case <-ctx.Done():
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for ctx.Err() == nil {
		if time.Now().After(u.expires) {
			if err := u.resolve(ctx, d.ports, r); err != nil {
				if ctx.Err() == nil {
					d.console.say("%v", err)
				}
				return
			}
			if now := !r.holds(u.addrs[0]); now != away {
				away = now
				moved.Add(map[bool]int64{true: 1, false: -1}[now])
			}
		}
		sent.Add(1)
		if err := page(client, netip.AddrPortFrom(u.addrs[rand.IntN(len(u.addrs))], uint16(d.ports.http))); err != nil {
			failed.Add(1)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// page requests one page at a proxy.
func page(client *http.Client, at netip.AddrPort) error {
	req, err := http.NewRequest(http.MethodGet, "http://"+at.String()+"/", nil)
	if err != nil {
		return err
	}
	req.Host = "www.example.com"
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", at, res.Status)
	}
	return nil
}

// resolve asks the region's node for the user, as a resolver would (RFC 7871).
func (u *user) resolve(ctx context.Context, p ports, r region) error {
	q := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
	q.SetEdns0(1232, false)
	q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_SUBNET{
		Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: uint8(u.prefix.Bits()), Address: net.IP(u.prefix.Addr().AsSlice()),
	}}
	m, _, err := (&dns.Client{Timeout: 5 * time.Second}).ExchangeContext(ctx, q, netip.AddrPortFrom(r.node(), uint16(p.dns)).String())
	if err != nil {
		return fmt.Errorf("www.example.com for %s: %w", u.prefix, err)
	}
	var addrs []netip.Addr
	for _, rr := range m.Answer {
		if a, ok := rr.(*dns.A); ok {
			if addr, ok := netip.AddrFromSlice(a.A.To4()); ok {
				addrs = append(addrs, addr)
				u.expires = time.Now().Add(time.Duration(a.Hdr.Ttl) * time.Second)
			}
		}
	}
	if len(addrs) == 0 {
		return fmt.Errorf("www.example.com for %s: %s without an address", u.prefix, dns.RcodeToString[m.Rcode])
	}
	u.addrs = addrs
	return nil
}

// observe counts what each frontend is asked for until ctx ends.
func (d *Demo) observe(ctx context.Context, r region, start time.Time, moved *atomic.Int64) *Overload {
	out := &Overload{Site: r.name, Capacity: d.capacity, Users: overloadUsers, Settled: -1, First: -1}
	tick := time.NewTicker(overloadWindow / 8)
	defer tick.Stop()
	type look struct {
		at     time.Time
		issued map[string]uint64
	}
	looks := []look{{start, d.issued()}}
	var told time.Time
	for {
		select {
		case <-ctx.Done():
			out.Event = d.event(r)
			return out
		case <-tick.C:
		}
		now := look{time.Now(), d.issued()}
		looks = append(looks, now)
		for len(looks) > 1 && now.at.Sub(looks[1].at) >= overloadWindow {
			looks = looks[1:]
		}
		if out.First < 0 && moved.Load() > 0 {
			out.First = now.at.Sub(start).Seconds()
		}
		over := now.at.Sub(looks[0].at)
		if over < overloadWindow {
			continue
		}
		fits := true
		var rates []string
		for _, pool := range slices.Sorted(maps.Keys(now.issued)) {
			rate := float64(now.issued[pool]-looks[0].issued[pool]) / over.Seconds()
			fits = fits && rate <= d.capacity*overloadSlack
			if pool == r.pool("fe") {
				out.Peak = max(out.Peak, rate)
			}
			rates = append(rates, fmt.Sprintf("%s %.0f/s", pool, rate))
		}
		// Until all is well with the users' requests counted at least once over the capacity, it
		// has only not begun.
		if fits && out.Settled < 0 && out.Peak > d.capacity*overloadSlack {
			out.Settled = looks[0].at.Sub(start).Seconds()
		}
		if now.at.Sub(told) >= 2*time.Second {
			told = now.at
			d.console.event("overload of %s: %s; DNS has moved %d of %d users", r.name, strings.Join(rates, ", "), moved.Load(), overloadUsers)
		}
	}
}

// issued returns what the proxies asked of each frontend so far.
func (d *Demo) issued() map[string]uint64 {
	out := map[string]uint64{}
	for _, r := range regions {
		out[r.pool("fe")] += 0
		g := d.gfes[r.pool("gfe")]
		g.mu.Lock()
		proxies := g.proxies
		g.mu.Unlock()
		for _, p := range proxies {
			for _, l := range p.Load().Pools {
				out[l.Pool] += l.Issued
			}
		}
	}
	return out
}

// event is what the region's node says of the overload: of requests and of answers in one.
func (d *Demo) event(r region) string {
	n := d.nodes[slices.IndexFunc(regions, func(o region) bool { return o.name == r.name })]
	for _, s := range n.Overloads() {
		if s.Site == r.name {
			return s.String()
		}
	}
	return ""
}

// serveOverload begins one, and answers at once: the demo tells what comes of it.
func (d *Demo) serveOverload(ctx context.Context) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		name := req.FormValue("name")
		i := slices.IndexFunc(regions, func(r region) bool { return r.name == name })
		switch {
		case i < 0:
			var names []string
			for _, r := range regions {
				names = append(names, r.name)
			}
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprintf(w, `{"error": %q, "hint": %q}`+"\n", fmt.Sprintf("no site %q in the demo", name), "one of "+strings.Join(names, ", "))
			return
		case !d.overloading.CompareAndSwap(false, true):
			w.WriteHeader(http.StatusConflict)
			fmt.Fprintln(w, `{"error": "an overload is under way", "hint": "wait until it has ended"}`)
			return
		}
		r := regions[i]
		d.background.Go(func() {
			defer d.overloading.Store(false)
			out, err := d.overload(ctx, r, overloadFactor*d.capacity, overloadFor)
			switch {
			case err != nil && ctx.Err() == nil:
				d.console.say("%v", err)
			case err == nil:
				if ctx.Err() == nil {
					d.console.say("overload of %s", out)
					if out.Event != "" {
						d.console.say("one event of one engine: %s", out.Event)
					}
				}
			}
		})
		json.NewEncoder(w).Encode(map[string]string{"message": fmt.Sprintf(
			"users near %s ask for %.0f requests a second for %v: %d times what its frontend takes. See the demo's terminal, gslbctl status and gslbctl gfe list.",
			r.city, overloadFactor*d.capacity, overloadFor, overloadFactor)})
	}
}
