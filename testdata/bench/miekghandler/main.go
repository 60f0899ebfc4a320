// Command miekghandler is the least that a DNS server on github.com/miekg/dns can do: it
// answers every query with one A record, and a client subnet with itself and its own length
// as scope.
package main

import (
	"flag"
	"fmt"
	"net/netip"
	"os"

	"github.com/miekg/dns"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:5303", "`address` and port")
	flag.Parse()
	s := &dns.Server{
		Addr: *listen, Net: "udp", Handler: dns.HandlerFunc(answer),
		NotifyStartedFunc: func() { fmt.Println("miekghandler ready on", *listen) },
	}
	if err := s.ListenAndServe(); err != nil {
		fmt.Fprintln(os.Stderr, "miekghandler:", err)
		os.Exit(1)
	}
}

var addr = netip.MustParseAddr("192.0.2.1").AsSlice()

func answer(w dns.ResponseWriter, q *dns.Msg) {
	r := new(dns.Msg)
	r.SetReply(q)
	r.Authoritative = true
	r.Answer = []dns.RR{&dns.A{
		Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 30},
		A:   addr,
	}}
	if opt := q.IsEdns0(); opt != nil {
		r.SetEdns0(1232, false)
		for _, o := range opt.Option {
			if s, ok := o.(*dns.EDNS0_SUBNET); ok {
				echo := *s
				echo.SourceScope = s.SourceNetmask
				reply := r.IsEdns0()
				reply.Option = append(reply.Option, &echo)
			}
		}
	}
	w.WriteMsg(r)
}
