package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	miekg "github.com/miekg/dns"
)

// TestTooLarge: what no message can hold is asked for over TCP, and ends there with SERVFAIL.
func TestTooLarge(t *testing.T) {
	var b strings.Builder
	b.WriteString("node: {name: a, site: eu, dns: [\"127.0.0.1:0\"]}\nsites: {eu: {lat: 1, lon: 1}}\nzones:\n  - name: big.example\n    records: |\n      $TTL 60\n      @ SOA a b 1 2 3 4 5\n      @ NS ns.invalid.\n")
	for i := range 300 {
		fmt.Fprintf(&b, "      @ TXT %s%03d\n", strings.Repeat("x", 250), i)
	}
	d := parseWorld(t, b.String()).data(t)
	from := netip.MustParseAddr("192.0.2.1")
	for _, tcp := range []bool{false, true} {
		pkt := ask(t, "big.example", "TXT")
		fast, full := testAnswerer(t), testAnswerer(t)
		full.q.from, full.q.tcp = from, tcp
		for path, reply := range map[string][]byte{
			"fast": fast.serve(d, pkt, from, tcp, make([]byte, maxMessage)),
			"full": full.answerFull(d, pkt, make([]byte, maxMessage)),
		} {
			m := unpack(t, reply)
			want := miekg.RcodeSuccess
			if tcp {
				want = miekg.RcodeServerFailure
			}
			if m.Truncated == tcp || m.Rcode != want || len(m.Answer) > 0 {
				t.Errorf("%s path, TCP %v: got TC %v, rcode %d, %d answers; want %v, %d and none", path, tcp, m.Truncated, m.Rcode, len(m.Answer), !tcp, want)
			}
		}
	}
}
