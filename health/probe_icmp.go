package health

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// icmpFamily is how one family speaks of echoes (RFC 792, RFC 4443 s4).
type icmpFamily struct {
	datagram, raw  string // networks: without and with CAP_NET_RAW
	any            string
	protocol       int
	request, reply icmp.Type
}

var (
	icmp4 = icmpFamily{"udp4", "ip4:icmp", "0.0.0.0", 1, ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply}
	icmp6 = icmpFamily{"udp6", "ip6:ipv6-icmp", "::", 58, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply}
)

// probeICMP sends t an echo request, which nobody else's reply can be mistaken for, and
// expects the reply.
func probeICMP(ctx context.Context, t Target) Result {
	f := &icmp4
	if t.Addr.Addr().Is6() {
		f = &icmp6
	}
	start := time.Now()
	raw := false
	c, err := icmp.ListenPacket(f.datagram, f.any)
	if err != nil {
		raw = true
		if c, err = icmp.ListenPacket(f.raw, f.any); err != nil {
			return Result{Class: Local, Detail: printable(fmt.Sprintf("no ICMP socket: %s; needs CAP_NET_RAW or net.ipv4.ping_group_range", detail(err)), maxDetail)}
		}
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	token := make([]byte, 18)
	_, _ = rand.Read(token) // never fails
	request := icmp.Message{Type: f.request, Body: &icmp.Echo{ID: int(token[16])<<8 | int(token[17]), Seq: 1, Data: token[:16]}}
	b, err := request.Marshal(nil)
	if err != nil {
		return Result{Class: Local, Detail: err.Error()}
	}
	var to net.Addr = &net.UDPAddr{IP: t.Addr.Addr().AsSlice()}
	if raw {
		to = &net.IPAddr{IP: t.Addr.Addr().AsSlice()}
	}
	if _, err := c.WriteTo(b, to); err != nil {
		return failure(start, err, Protocol)
	}
	for buf := make([]byte, 1500); ; {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return failure(start, err, Protocol)
		}
		m, err := icmp.ParseMessage(f.protocol, buf[:n])
		if err != nil || m.Type != f.reply || addrOf(from) != t.Addr.Addr() {
			continue
		}
		if echo, ok := m.Body.(*icmp.Echo); ok && bytes.Equal(echo.Data, token[:16]) {
			return Result{Latency: time.Since(start)}
		}
	}
}

func addrOf(a net.Addr) netip.Addr {
	var ip net.IP
	switch a := a.(type) {
	case *net.UDPAddr:
		ip = a.IP
	case *net.IPAddr:
		ip = a.IP
	}
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}
