package dns

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/meridian-gslb/meridian/dns/zone"
)

// Some may ask why an answer is what it is: by TXT at _explain and the name, or beside the answer
// itself by an EDNS option. Both take the full path. To others neither exists.

// optionExplain asks for the reason of the answer, as the extra text of an Extended DNS Error
// (RFC 8914). It is of the range for local use (RFC 6891, section 9) and carries no data.
const optionExplain = 65501

// explainLabel is the label before the name that is explained.
const explainLabel = "\x08_explain"

// maxBrief bounds the extra text beside an answer, in octets: it leaves room for what was asked.
const maxBrief = 512

// maxExplained bounds the lines of one explanation, in octets: all of them are one RRset.
const maxExplained = 60 << 10

// Explainers are those who may ask why.
type Explainers struct {
	Allow []netip.Prefix // by their address
	Keys  []TSIGKey      // or by a signature
}

// TSIGKey is a shared secret that signs queries and their replies (RFC 8945).
type TSIGKey struct {
	Name      string // of the key
	Algorithm string // hmac-sha256 and the like, as a name
	Secret    string // base64
}

// allows tells whether who asks from addr may ask why.
func (e *Explainers) allows(addr netip.Addr) bool {
	return slices.ContainsFunc(e.Allow, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// key returns the key of that name and algorithm, which are canonical, or nil.
func (e *Explainers) key(name, algorithm string) *TSIGKey {
	i := slices.IndexFunc(e.Keys, func(k TSIGKey) bool {
		return miekg.CanonicalName(k.Name) == name && miekg.CanonicalName(k.Algorithm) == algorithm
	})
	if i < 0 {
		return nil
	}
	return &e.Keys[i]
}

// asksWhy tells whether a query asks for what only some may ask: of any type, as a name is there for
// all of them or for none (RFC 8020).
func (q *query) asksWhy() bool {
	return q.edns.explain || bytes.HasPrefix(q.lower[:len(q.name)], []byte(explainLabel))
}

// mayAskWhy tells whether the address that asks is enough to be told why.
func (a *answerer) mayAskWhy() bool {
	return a.explainers != nil && a.explainers.Load().allows(a.q.from)
}

// explainName adds the explanation of the name below _explain, for the client that would ask for
// it. It is false for a question of another type, and where that name leads to no service; then the
// name is one like any other.
func (a *answerer) explainName(d *Data) bool {
	if a.q.qtype != typeTXT && a.q.qtype != typeANY {
		return false
	}
	service, lines := a.explained(d)
	if service < 0 {
		return false
	}
	client, fromECS := a.q.client()
	e := d.Snapshot.Explain(d.Snapshot.Services[service], client)
	a.addLines(append(lines, e.Lines()...))
	if fromECS { // the figures are this client's
		a.r.scope = a.q.edns.ecs.source
	}
	return true
}

// explained returns the service that the name below _explain leads to, or -1, and a line for each
// alias on the way.
func (a *answerer) explained(d *Data) (service int32, aliases []string) {
	name, ok := bytes.CutPrefix(a.q.lower[:len(a.q.name)], []byte(explainLabel))
	var res zone.Result
	for range maxChain {
		if !ok {
			break
		}
		switch d.Zones.Resolve(name, typeA, &res); res.Outcome {
		case zone.Alias:
			target := res.RRset.RData[0]
			aliases = append(aliases, fmt.Sprintf("00 %s is an alias of %s", textName(name), textName(target)))
			name = zone.AppendLower(nil, target)
		case zone.Steered:
			return res.Node.Service, aliases
		default:
			ok = false
		}
	}
	return -1, nil
}

// hasExplanation tells whether TXT at the name that is asked for is an explanation.
func (a *answerer) hasExplanation(d *Data) bool {
	service, _ := a.explained(d)
	return service >= 0
}

// addLines answers with lines, one TXT RR each, which nobody is to keep.
func (a *answerer) addLines(lines []string) {
	r, total := &a.r, 0
	var rdatas [][]byte
	for _, line := range lines {
		if total += len(line); total > maxExplained {
			rdatas = append(rdatas, text("99 and more: gslbctl explain shows all"))
			break
		}
		rdatas = append(rdatas, text(line))
	}
	r.aa, r.resolved, r.outcome = true, true, zone.Hit
	a.add(inAnswer, a.q.name, typeTXT, 0).rdata = rdatas
}

// text returns the rdata of a TXT RR that holds s (RFC 1035, section 3.3.14).
func text(s string) (rdata []byte) {
	for {
		n := min(len(s), 255)
		rdata = append(append(rdata, byte(n)), s[:n]...)
		if s = s[n:]; s == "" {
			return rdata
		}
	}
}

// explainAnswer says in r.brief why the answer is what it is, where the query asks for that.
func (a *answerer) explainAnswer(d *Data) {
	switch r := &a.r; {
	case !a.q.edns.explain:
	case r.decided:
		client, _ := a.q.client()
		r.brief = d.Snapshot.Explain(a.d.Service, client).Brief(maxBrief)
	case r.resolved:
		r.brief = "nothing was decided: " + r.outcome.String()
	}
}

// signature is what the reply to a signed query is signed with (RFC 8945, section 5.3).
type signature struct {
	rr     miekg.TSIG // of the reply, to be filled
	secret string
	mac    string // of the query, in hex
}

// tsigFudge is how far two clocks may be apart: what RFC 8945, section 10, recommends.
const tsigFudge = 300

// verify checks the TSIG of a query that has one, and has the reply signed. A key that we do not
// have, a bad signature and a bad time are refused with NOTAUTH.
func (a *answerer) verify(pkt []byte) admission {
	var msg miekg.Msg
	if err := msg.Unpack(pkt); err != nil || msg.IsTsig() == nil { // not last: RFC 8945, section 5.1
		a.r.rcode = rcodeFormErr
		return refused
	}
	rr := msg.IsTsig()
	now := time.Now() // as it is checked against
	a.signed = &signature{rr: miekg.TSIG{
		Hdr:       miekg.RR_Header{Name: rr.Hdr.Name, Rrtype: miekg.TypeTSIG, Class: miekg.ClassANY},
		Algorithm: rr.Algorithm, TimeSigned: uint64(now.Unix()), Fudge: tsigFudge, OrigId: a.q.id,
	}, mac: rr.MAC}
	reply := &a.signed.rr
	key := a.explainers.Load().key(miekg.CanonicalName(rr.Hdr.Name), miekg.CanonicalName(rr.Algorithm))
	if key == nil {
		reply.Error = miekg.RcodeBadKey
	} else {
		a.signed.secret = key.Secret
		switch err := miekg.TsigVerify(bytes.Clone(pkt), key.Secret, "", false); {
		case errors.Is(err, miekg.ErrTime):
			reply.Error, reply.TimeSigned = miekg.RcodeBadTime, rr.TimeSigned
			reply.OtherLen, reply.OtherData = 6, fmt.Sprintf("%012x", now.Unix())
		case err != nil:
			reply.Error = miekg.RcodeBadSig
		}
	}
	if reply.Error != 0 {
		a.r.rcode = rcodeNotAuth
		return refused
	}
	return wellFormed
}

// sign returns msg with the signature.
func (s *signature) sign(msg *miekg.Msg) ([]byte, error) {
	rr := s.rr
	msg.Extra = append(msg.Extra, &rr)
	out, _, err := miekg.TsigGenerate(msg, s.secret, s.mac, false)
	return out, err
}
