package config

import (
	"fmt"
	"net/netip"
	"strings"
)

// CanonicalName returns a domain name as the objects hold it: lower case (ASCII), no
// trailing dot. The root stays ".".
func CanonicalName(name string) string {
	if name == "." {
		return name
	}
	return strings.ToLower(strings.TrimSuffix(name, "."))
}

// StateName returns the name that a State on a pool, or on one of its endpoints, is kept
// under: "gfe-eu" or "gfe-eu/192.0.2.11". A zero endpoint is the whole pool.
func StateName(pool string, endpoint netip.Addr) string {
	if !endpoint.IsValid() {
		return pool
	}
	return pool + "/" + endpoint.String()
}

// checkDomain says what is wrong with name as a canonical domain name in text (RFC 1035,
// section 2.3.4, with underscores and a leading "*" label allowed), or "".
func checkDomain(name string) string {
	switch {
	case name == "":
		return "empty; expected a domain name"
	case name != CanonicalName(name):
		return fmt.Sprintf("expected %s: lower case, without a trailing dot", CanonicalName(name))
	case name == ".":
		return ""
	case len(name) > 253: // 255 octets in wire form
		return fmt.Sprintf("%d octets long; a domain name has at most 253", len(name))
	}
	for i, label := range strings.Split(name, ".") {
		switch {
		case label == "":
			return "has an empty label"
		case len(label) > 63:
			return fmt.Sprintf("label %.16s… is %d octets long; expected at most 63", label, len(label))
		case label == "*" && i == 0:
			continue
		}
		for _, c := range []byte(label) {
			if !isAlnum(c) && c != '-' && c != '_' {
				return fmt.Sprintf("%q in a label; expected letters, digits, - and _", rune(c))
			}
		}
	}
	return ""
}

// checkName says what is wrong with the name of an object that is not a domain name, or "".
// Such names stand in keys of the store, in metrics and on command lines.
func checkName(name string) string {
	if name == "" {
		return "empty name"
	}
	if len(name) > 63 {
		return fmt.Sprintf("name is %d octets long; expected at most 63", len(name))
	}
	for i, c := range []byte(name) {
		if !isAlnum(c) && (i == 0 || c != '-' && c != '_' && c != '.') {
			return fmt.Sprintf("%q in a name; expected letters, digits, and after the first also - _ .", rune(c))
		}
	}
	return ""
}

func isAlnum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
