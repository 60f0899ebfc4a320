package dns

import "encoding/binary"

// reason is why a reply is no plain answer, for an Extended DNS Error (RFC 8914).
type reason uint8

const (
	noReason reason = iota
	whyNotReady
	whyNotOurs
	whyAllDown
	whyLoop
	whyFlatten
	whyQuarantined
)

// extendedErrors are the info code and the extra text of each reason.
var extendedErrors = [...]struct {
	code uint16
	text string
}{
	whyNotReady:    {14, "no configuration yet"},
	whyNotOurs:     {20, ""},
	whyAllDown:     {0, "every endpoint of the service is down"},
	whyLoop:        {0, "the aliases form a loop"},
	whyFlatten:     {0, "the service is a name elsewhere, and an alias cannot stand here"},
	whyQuarantined: {15, "a query like this one failed here a moment ago"},
}

// Identity is what the server says of itself to those who ask. Empty fields are not told.
type Identity struct {
	ID      string // NSID (RFC 5001), CH TXT id.server and hostname.bind; at most 255 octets
	Version string // CH TXT version.bind and version.server; at most 255 octets
}

// putOptions makes the options of the reply's OPT, in wire form in a.opts: the client subnet as
// it was asked with the answer's scope, and what else the query asked for.
func (a *answerer) putOptions() {
	q, r := &a.q, &a.r
	a.opts = a.opts[:0]
	if !r.opt {
		return
	}
	e := &q.edns
	if e.ecs.raw != nil {
		a.opts = append(appendOption(a.opts, optionECS, len(e.ecs.raw)), e.ecs.raw...)
		a.opts[len(a.opts)-len(e.ecs.raw)+3] = r.scope
	}
	if e.nsid && a.identity.ID != "" {
		a.opts = append(appendOption(a.opts, optionNSID, len(a.identity.ID)), a.identity.ID...)
	}
	if e.cookie != nil && a.cookies != nil {
		a.opts = appendOption(a.opts, optionCookie, cookieLen)
		a.opts = a.cookies.Load().append(a.opts, e.cookie, q.from, uint32(a.start.Unix()))
	}
	if e.keepalive && q.tcp && a.keepalive > 0 {
		a.opts = binary.BigEndian.AppendUint16(appendOption(a.opts, optionKeepalive, 2), a.keepalive)
	}
	if r.why != noReason {
		x := &extendedErrors[r.why]
		a.opts = binary.BigEndian.AppendUint16(appendOption(a.opts, optionError, 2+len(x.text)), x.code)
		a.opts = append(a.opts, x.text...)
	}
	if r.brief != "" {
		a.opts = binary.BigEndian.AppendUint16(appendOption(a.opts, optionError, 2+len(r.brief)), 0)
		a.opts = append(a.opts, r.brief...)
	}
	if q.told != nil {
		a.opts = append(appendOption(a.opts, optionTrace, len(q.told)), q.told...)
	}
}

func appendOption(b []byte, code uint16, length int) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, code), uint16(length))
}

// optLen returns how many octets putOPT will write.
func (a *answerer) optLen() int {
	if !a.r.opt {
		return 0
	}
	return 11 + len(a.opts)
}

// putOPT writes our OPT: our UDP size, version 0, DO as it was asked (RFC 3225, section 3) and
// the options. The room for it was kept.
func (a *answerer) putOPT() {
	m := &a.m
	b := m.buf[m.n:][:a.optLen()]
	b[0] = 0
	binary.BigEndian.PutUint16(b[1:], typeOPT)
	binary.BigEndian.PutUint16(b[3:], uint16(a.maxUDP))
	b[5], b[6], b[7], b[8] = uint8(a.r.rcode>>4), 0, 0, 0
	if a.q.edns.do {
		b[7] = flagDO >> 8
	}
	binary.BigEndian.PutUint16(b[9:], uint16(len(a.opts)))
	copy(b[11:], a.opts)
	m.n += len(b)
}
