package health

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// probeDNS asks t one question and expects the rcode, and a record with the rdata.
func probeDNS(ctx context.Context, t Target) Result {
	d := t.Probe.DNS
	qtype, ok := dns.StringToType[d.Type]
	if !ok {
		return Result{Class: Local, Detail: fmt.Sprintf("type %q is not known", d.Type)}
	}
	rcode, ok := dns.StringToRcode[d.Rcode]
	if !ok {
		return Result{Class: Local, Detail: fmt.Sprintf("rcode %q is not known", d.Rcode)}
	}
	network := "udp"
	if d.TCP {
		network = "tcp"
	}
	start := time.Now()
	c, err := connect(ctx, network, t)
	if err != nil {
		return failure(start, err, Protocol)
	}
	defer func() { _ = c.Close() }()
	co := &dns.Conn{Conn: c.(*boundConn).Conn, UDPSize: 4096} // which must see whether it is UDP
	q := new(dns.Msg).SetQuestion(dns.Fqdn(d.Name), qtype)
	if err := co.WriteMsg(q); err != nil {
		return failure(start, err, Protocol)
	}
	for {
		r, err := co.ReadMsg()
		if err != nil {
			return failure(start, err, Protocol)
		}
		if r.Id != q.Id || !r.Response || len(r.Question) != 1 || !strings.EqualFold(r.Question[0].Name, q.Question[0].Name) || r.Question[0].Qtype != qtype {
			continue // of another question
		}
		return judgeDNS(r, rcode, d.Answer, time.Since(start))
	}
}

func rdata(rr dns.RR) string { return strings.TrimPrefix(rr.String(), rr.Header().String()) }

// canonicalRdata returns the rdata that text means for a record of that type, whichever way
// its addresses, names and quotes are written; text itself if it is none.
func canonicalRdata(text string, qtype uint16) string {
	rr, err := dns.NewRR(". 0 IN " + dns.TypeToString[qtype] + " " + text)
	if err != nil || rr == nil {
		return text
	}
	return rdata(rr)
}

func judgeDNS(r *dns.Msg, rcode int, answer string, latency time.Duration) Result {
	if r.Rcode != rcode {
		return Result{Class: WrongStatus, Latency: latency, Detail: fmt.Sprintf("rcode %s, expected %s", dns.RcodeToString[r.Rcode], dns.RcodeToString[rcode])}
	}
	if answer == "" {
		return Result{Latency: latency}
	}
	var got []string
	for _, rr := range r.Answer {
		data := rdata(rr)
		if strings.EqualFold(data, answer) || strings.EqualFold(data, canonicalRdata(answer, rr.Header().Rrtype)) {
			return Result{Latency: latency}
		}
		got = append(got, data)
	}
	if got == nil {
		got = []string{"no record"}
	}
	return Result{Class: WrongBody, Latency: latency, Detail: printable(fmt.Sprintf("answer %s, expected %s", strings.Join(got, ", "), answer), maxDetail)}
}
