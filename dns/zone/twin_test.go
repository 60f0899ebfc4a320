package zone

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// twin answers as a Set should: slowly, label by label as RFC 1034, section 4.3.2, tells it,
// over plain lists of RRs and names in presentation form.
type twin struct {
	zones    []twinZone
	services map[string]int32 // by name with its trailing dot
}

type twinZone struct {
	origin string
	rrs    []dns.RR
}

// types returns the types of the RRs at name, ordered.
func (z twinZone) types(name string) []uint16 {
	var types []uint16
	for _, rr := range z.rrs {
		if h := rr.Header(); strings.EqualFold(h.Name, name) && !slices.Contains(types, h.Rrtype) {
			types = append(types, h.Rrtype)
		}
	}
	slices.Sort(types)
	return types
}

// closest returns the deepest zone at or above name, or nil.
func (w *twin) closest(name string) *twinZone {
	var best *twinZone
	for i := range w.zones {
		z := &w.zones[i]
		if dns.IsSubDomain(z.origin, name) && (best == nil || dns.CountLabel(z.origin) > dns.CountLabel(best.origin)) {
			best = z
		}
	}
	return best
}

// exists tells whether an RR or a service of the zone is at name or below it.
func (w *twin) exists(z *twinZone, name string) bool {
	for _, rr := range z.rrs {
		if dns.IsSubDomain(name, strings.ToLower(rr.Header().Name)) {
			return true
		}
	}
	for owner := range w.services {
		if dns.IsSubDomain(name, owner) && w.closest(owner) == z {
			return true
		}
	}
	return false
}

// resolve returns what describe says of a Result, with names in lower case.
func (w *twin) resolve(name string, qtype uint16) string {
	z := w.closest(name)
	if z == nil {
		return "not ours"
	}
	if qtype == dns.TypeDS && name == z.origin && name != "." {
		if parent := w.closest(name[strings.Index(name, ".")+1:] + map[bool]string{true: "."}[dns.CountLabel(name) == 1]); parent != nil {
			z = parent
		}
	}
	labels := dns.SplitDomainName(name)
	for i := len(labels) - dns.CountLabel(z.origin); ; i-- {
		at := dns.Fqdn(strings.Join(labels[i:], "."))
		types := z.types(at)
		if at != z.origin && slices.Contains(types, dns.TypeNS) && (i > 0 || qtype != dns.TypeDS) {
			return w.show("referral", z, at, dns.TypeNS)
		}
		if i == 0 {
			return w.answer(z, at, qtype)
		}
		if slices.Contains(types, dns.TypeDNAME) {
			return w.show("redirect", z, at, dns.TypeDNAME)
		}
		if w.exists(z, dns.Fqdn(strings.Join(labels[i-1:], "."))) {
			continue
		}
		star := "*." + strings.TrimPrefix(at, ".")
		if !w.exists(z, star) {
			return w.show("name error", z, "", 0)
		}
		return w.answer(z, star, qtype) + " wildcard"
	}
}

// answer returns what the node at name answers.
func (w *twin) answer(z *twinZone, name string, qtype uint16) string {
	types := z.types(name)
	service, steered := w.services[name]
	switch {
	case steered && (qtype == dns.TypeA || qtype == dns.TypeAAAA):
		return w.show("steered", z, name, 0) + fmt.Sprintf(" service=%d", service)
	case qtype == dns.TypeANY && len(types) > 0:
		return w.show("hit", z, name, types[0])
	case slices.Contains(types, qtype):
		return w.show("hit", z, name, qtype)
	case slices.Contains(types, dns.TypeCNAME):
		return w.show("alias", z, name, dns.TypeCNAME)
	}
	return w.show("nodata", z, name, 0)
}

func (w *twin) show(outcome string, z *twinZone, node string, rrtype uint16) string {
	trim := func(s string) string { return strings.TrimSuffix(s, ".") + map[bool]string{true: "."}[s == "."] }
	s := outcome + " zone=" + trim(z.origin)
	if node != "" {
		s += " node=" + trim(node)
	}
	if rrtype != 0 {
		s += " rrset=" + dns.Type(rrtype).String()
	}
	return s
}

// place tells whether a service may be at name.
func (w *twin) place(name string) bool {
	z := w.closest(name)
	if z == nil {
		return false
	}
	for _, t := range z.types(name) {
		if t == dns.TypeA || t == dns.TypeAAAA || t == dns.TypeCNAME {
			return false
		}
	}
	static := &twin{zones: []twinZone{*z}}
	got := static.resolve(name, dns.TypeTXT)
	return !strings.HasPrefix(got, "referral") && !strings.HasPrefix(got, "redirect")
}

// random makes zones, services and questions of few labels, so that they meet often.
type random struct{ *rand.Rand }

func (r random) pick(from ...string) string { return from[r.IntN(len(from))] }

func (r random) name(origin string) string {
	name := origin
	for range r.IntN(4) {
		name = r.pick("a", "b", "*", "B", `\.`) + "." + strings.TrimPrefix(name, ".")
	}
	return name
}

// zone returns the text of a zone that loads.
func (r random) zone(origin string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s 60 SOA ns.invalid. h.invalid. 1 2 3 4 5\n%s 60 NS ns.invalid.\n", origin, origin)
	kinds := map[string]string{origin: "plain"} // by owner: what does not go together is not put together
	for range r.IntN(12) {
		owner := r.name(origin)
		key := strings.ToLower(owner)
		if kinds[key] == "" {
			kinds[key] = r.pick("plain", "plain", "plain", "CNAME", "cut", "DNAME")
		}
		switch kind := kinds[key]; {
		case kind == "CNAME":
			fmt.Fprintf(&b, "%s 60 CNAME x.invalid.\n", owner)
		case kind == "cut" && owner[0] != '*':
			fmt.Fprintf(&b, "%s 60 NS %s\n", owner, r.name(origin))
			if r.IntN(2) == 0 {
				fmt.Fprintf(&b, "%s 60 DS 1 8 2 %064x\n", owner, 1)
			}
		case kind == "DNAME" && owner[0] != '*':
			fmt.Fprintf(&b, "%s 60 DNAME x.invalid.\n%s 60 TXT d\n", owner, owner)
		default:
			fmt.Fprintf(&b, "%s 60 %s\n", owner, r.pick("A 192.0.2.1", "TXT x", "AAAA ::1", "A 192.0.2.2"))
			kinds[key] = "plain"
		}
	}
	return b.String()
}

// TestTwin compares a Set with its twin on random zones, services and questions.
func TestTwin(t *testing.T) {
	outcomes := make(map[string]int)
	for seed := range uint64(3000) {
		r := random{rand.New(rand.NewPCG(seed, 1))}
		w := &twin{services: make(map[string]int32)}
		var list []*Zone
		var texts []string
		for _, origin := range []string{".", "a.", "example.", "a.example.", `b.\..a.example.`} {
			if r.IntN(2) == 0 {
				continue
			}
			text := r.zone(origin)
			z, _, err := Parse(strings.NewReader(text), "", origin)
			if err != nil {
				t.Fatalf("seed %d: %v\n%s", seed, err, text)
			}
			list, texts = append(list, z), append(texts, text)
			tz := twinZone{origin: origin}
			zp := dns.NewZoneParser(strings.NewReader(text), ".", "")
			for rr, ok := zp.Next(); ok; rr, ok = zp.Next() {
				tz.rrs = append(tz.rrs, rr)
			}
			w.zones = append(w.zones, tz)
		}
		services := make(map[string]int32)
		static := mustSet(t, list, nil)
		for i := range r.IntN(4) {
			name := strings.ToLower(r.name(r.pick("example.", "a.", "a.example.")))
			key := strings.TrimSuffix(name, ".")
			_, err := static.WithServices(map[string]int32{key: 0})
			if may := w.place(name); may != (err == nil) {
				t.Fatalf("seed %d: service %s: got %v, want it placed: %v\n%s", seed, key, err, may, strings.Join(texts, "\n"))
			}
			if err == nil {
				services[key], w.services[name] = int32(i), int32(i)
			}
		}
		set := mustSet(t, list, services)
		for range 60 {
			name := strings.ToLower(r.name(r.pick(".", "example.", "a.", "a.example.", "a.a.example.")))
			qtype := []uint16{dns.TypeA, dns.TypeTXT, dns.TypeDS, dns.TypeNS, dns.TypeANY, dns.TypeCNAME, dns.TypeDNAME}[r.IntN(7)]
			var result Result
			set.Resolve(wire(t, name), qtype, &result)
			got, want := strings.ToLower(describe(&result)), strings.ToLower(w.resolve(name, qtype))
			if got != want {
				t.Fatalf("seed %d: %s %s\ngot  %s\nwant %s\nservices %v\n%s", seed, name, dns.Type(qtype), got, want, services, strings.Join(texts, "\n"))
			}
			outcomes[result.Outcome.String()]++
		}
	}
	for o := NotOurs; o <= Redirect; o++ {
		if outcomes[o.String()] < 500 {
			t.Errorf("only %d of the questions led to %v: the test tries too little", outcomes[o.String()], o)
		}
	}
}
