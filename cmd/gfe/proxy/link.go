package proxy

import (
	"net"
	"net/http"
	"net/netip"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/meridian-gslb/meridian/tracing"
)

// link says in the span of r at which address it was taken, and ties it to the answer that led
// there, as far as the address tells. A link rather than a parent: one answer leads to many
// requests.
func (p *Proxy) link(span trace.Span, r *http.Request) {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return
	}
	vip, err := netip.ParseAddrPort(local.String())
	if err != nil {
		return
	}
	addr := vip.Addr().Unmap().WithZone("")
	if span.IsRecording() {
		span.SetAttributes(attribute.String(tracing.AttrVIP, addr.String()))
	}
	if p.c.Linker == nil {
		return
	}
	// Also of a request that is not recorded: what was forged is to be counted.
	client, _ := netip.ParseAddrPort(r.RemoteAddr)
	c, ok := p.c.Linker.Cause(addr, client.Addr(), time.Now())
	if !ok || !span.IsRecording() {
		return
	}
	l := c.Link()
	attrs := make([]attribute.KeyValue, 0, len(l.Attributes))
	for key, v := range l.Attributes {
		switch v := v.(type) {
		case string:
			attrs = append(attrs, attribute.String(key, v))
		case float64:
			attrs = append(attrs, attribute.Float64(key, v))
		}
	}
	span.AddLink(trace.Link{
		SpanContext: trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: trace.TraceID(l.TraceID), SpanID: trace.SpanID(l.SpanID), TraceFlags: trace.FlagsSampled, Remote: true,
		}),
		Attributes: attrs,
	})
	span.SetAttributes(attribute.Float64(tracing.AttrAnswerAge, c.Age.Seconds()), attribute.String(tracing.AttrDecisionID, c.ID.String()))
}
