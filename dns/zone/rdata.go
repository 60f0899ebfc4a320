package zone

import (
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// What dns.ZoneParser and dns.PackRR let pass, and should not.

// badRData says what is wrong with the rdata of rr, or nothing. It is rdata in wire form, and was
// given as so many octets, or 0 where that was in the words of its type.
func badRData(rr dns.RR, given int, rdata []byte) string {
	h := *rr.Header()
	if len(rdata) == 0 && dns.TypeToRR[h.Rrtype] != nil && h.Rrtype != dns.TypeNULL && h.Rrtype != dns.TypeAPL {
		return "no rdata"
	}
	if given > 0 && given != len(rdata) {
		return fmt.Sprintf("rdata of %d octets, of which %d are some of this type", given, len(rdata))
	}
	if len(rdata) > MaxName { // only then may a name in it be too long
		h.Rdlength = uint16(len(rdata))
		if _, _, err := dns.UnpackRRWithHeader(h, rdata, 0); err != nil {
			return strings.ReplaceAll(err.Error(), "dns: ", "")
		}
	}
	switch rr := rr.(type) {
	case *dns.SVCB:
		return badParameters(rr)
	case *dns.HTTPS:
		return badParameters(&rr.SVCB)
	case *dns.DS:
		return badDigest(rr)
	case *dns.CAA:
		if !isTag(rr.Tag) {
			return fmt.Sprintf("tag %q: expected letters and digits (RFC 8659, section 4.1)", rr.Tag)
		}
	}
	return ""
}

// badParameters says how the parameters of SVCB or HTTPS contradict each other, or nothing: "mandatory"
// names others that are there (RFC 9460, section 8), "no-default-alpn" comes with "alpn" (7.1.1).
func badParameters(rr *dns.SVCB) string {
	has := func(key dns.SVCBKey) bool {
		return slices.ContainsFunc(rr.Value, func(v dns.SVCBKeyValue) bool { return v.Key() == key })
	}
	if has(dns.SVCB_NO_DEFAULT_ALPN) && !has(dns.SVCB_ALPN) {
		return "no-default-alpn without alpn (RFC 9460, section 7.1.1)"
	}
	for _, v := range rr.Value {
		mandatory, ok := v.(*dns.SVCBMandatory)
		if !ok {
			continue
		}
		for i, key := range mandatory.Code {
			switch {
			case key == dns.SVCB_MANDATORY:
				return "mandatory names itself (RFC 9460, section 8)"
			case slices.Contains(mandatory.Code[:i], key):
				return fmt.Sprintf("mandatory names %s twice (RFC 9460, section 8)", key)
			case !has(key):
				return fmt.Sprintf("%s is mandatory and not there (RFC 9460, section 8)", key)
			}
		}
	}
	return ""
}

// digests are the octets of a DS's digest by its type, where that is known (RFC 4034, section 5.1.4;
// RFC 4509; RFC 6605).
var digests = map[uint8]int{dns.SHA1: 20, dns.SHA256: 32, dns.SHA384: 48}

// badDigest tells whether the digest of ds has not the length that its type has.
func badDigest(ds *dns.DS) string {
	if want, got := digests[ds.DigestType], len(ds.Digest)/2; want > 0 && got != want { // in hex
		return fmt.Sprintf("a digest of %d octets: expected %d for type %d", got, want, ds.DigestType)
	}
	return ""
}

// isTag tells whether s may be the tag of a CAA.
func isTag(s string) bool {
	for _, c := range []byte(s) {
		if c|0x20 < 'a' && (c < '0' || c > '9') || c|0x20 > 'z' {
			return false
		}
	}
	return s != ""
}

// badEscape returns the first escape in the text of an entry that begins as \DDD, an octet in decimal,
// and is none; or nothing. What follows a ';' outside of quotes says nothing.
func badEscape(text []byte) string {
	quote := false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			quote = !quote
		case c == ';' && !quote:
			for i+1 < len(text) && text[i+1] != '\n' {
				i++
			}
		case c == '\\' && i+1 < len(text):
			if next := text[i+1]; next < '0' || next > '9' {
				i++
				continue
			}
			escape := text[i:min(i+4, len(text))]
			if _, ok := number(escape[1:], 255); !ok || len(escape) < 4 {
				return strings.TrimRight(string(escape), "\r\n")
			}
			i += 3
		}
	}
	return ""
}
