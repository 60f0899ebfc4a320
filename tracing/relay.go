package tracing

import (
	"bytes"
	"net"
	"net/netip"

	"google.golang.org/protobuf/encoding/protowire"
)

// maxGuesses bounds the looks at the ledger for one request: each reads all answers of an address.
const maxGuesses = 1000

// relay returns request, an ExportTraceServiceRequest that was checked, with a link to the
// decision and the age of its answer in every span of a request whose cause is known; false if
// there is none, and then request is to be passed on as it came. Only the spans concerned
// change: what this code does not know of is copied octet by octet.
//
// Such a span is of kind SERVER, has gslb.vip and no link yet. Past maxGuesses none is guessed at.
func (l *Linker) relay(request []byte) (out []byte, changed bool) {
	if !bytes.Contains(request, []byte(AttrVIP)) {
		return request, false
	}
	guesses := maxGuesses
	span := func(b []byte) []byte {
		more := l.cause(b, &guesses)
		changed = changed || more != nil
		return append(bytes.Clone(b), more...)
	}
	scopeSpans := func(b []byte) []byte { return rewrite(b, scopeSpansSpans, span) }
	resourceSpans := func(b []byte) []byte { return rewrite(b, resourceSpansScopeSpans, scopeSpans) }
	out = rewrite(request, requestResourceSpans, resourceSpans)
	if !changed {
		return request, false
	}
	return out, true
}

// cause returns the fields to append to a Span, or nil. It guesses at most guesses times, which
// it counts down.
func (l *Linker) cause(span []byte, guesses *int) []byte {
	s, err := decodeSpan(span)
	if err != nil || s.Kind != KindServer || len(s.Links) > 0 {
		return nil
	}
	local, ok := addrOf(s.Attributes[AttrVIP])
	if !ok {
		return nil
	}
	client, ok := addrOf(s.Attributes[AttrClientAddress])
	if !ok {
		client, _ = addrOf(s.Attributes["peer.address"]) // as Envoy calls it
	}
	if l.ledger != nil && local.Unmap().Is4() {
		if *guesses == 0 {
			l.unsure.Add(1)
			return nil
		}
		*guesses--
	}
	c, ok := l.Cause(local, client, s.Start)
	if !ok {
		return nil
	}
	b := attrDouble(nil, spanAttributes, AttrAnswerAge, c.Age.Seconds())
	b = attrString(b, spanAttributes, AttrDecisionID, c.ID.String())
	link := c.Link()
	return appendLink(b, &link)
}

// What a link is known by: the values of gslb.link.by.
const (
	linkedByAddress = "address"
	linkedByLedger  = "ledger"
)

// Link returns the link from a request to c.
func (c *Cause) Link() Link {
	return Link{TraceID: c.TraceID, SpanID: c.SpanID, Attributes: map[string]any{AttrConfidence: c.Confidence, AttrLinkedBy: c.by}}
}

// addrOf reads an address with or without a port, with or without brackets.
func addrOf(v any) (netip.Addr, bool) {
	s, _ := v.(string)
	if host, _, err := net.SplitHostPort(s); err == nil {
		s = host
	}
	if len(s) > 2 && s[0] == '[' && s[len(s)-1] == ']' {
		s = s[1 : len(s)-1]
	}
	addr, err := netip.ParseAddr(s)
	return addr.WithZone(""), err == nil
}

// rewrite returns message b, which was checked, with the content of every field num, a nested
// message, as f makes it, and everything else as it is.
func rewrite(b []byte, num protowire.Number, f func([]byte) []byte) []byte {
	out := make([]byte, 0, len(b)+128)
	for len(b) > 0 {
		n, typ, tag := protowire.ConsumeTag(b)
		size := protowire.ConsumeFieldValue(n, typ, b[max(tag, 0):])
		if tag < 0 || size < 0 {
			return append(out, b...) // cannot be, after the check
		}
		if n == num && typ == protowire.BytesType {
			content, _ := protowire.ConsumeBytes(b[tag:])
			out = appendBytes(out, num, f(content))
		} else {
			out = append(out, b[:tag+size]...)
		}
		b = b[tag+size:]
	}
	return out
}
