package gslb

import (
	"fmt"
	"net/netip"
	glob "path"
	"slices"
	"strings"
	"time"

	"github.com/meridian-gslb/meridian/geo"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// locus is all that stages may know of a client: where it is, and the longest prefix that
// the policy names around it. As every prefix of a policy is such a mark, a client is in one
// of them if and only if its mark is.
type locus struct {
	spot
	place  *geo.Place
	prefix netip.Prefix // invalid: no prefix of the policy holds the client
}

var noPlace geo.Place

// nowhere is the locus of a client of which nothing is known.
var nowhereLocus = locus{place: &noPlace}

// in reports whether the client is in p, a prefix that the policy names.
func (l *locus) in(p netip.Prefix) bool {
	return l.prefix.IsValid() && p.Bits() <= l.prefix.Bits() && p.Contains(l.prefix.Addr())
}

// locusOf returns the locus of the proxies of a pool at that site.
func locusOf(name string, s config.Site) locus {
	_, sub, _ := strings.Cut(s.Subdivision, "-")
	return locus{
		spot: spotAt(s.Lat, s.Lon),
		place: &geo.Place{
			Lat: s.Lat, Lon: s.Lon, Located: true, Continent: s.Continent, Country: s.Country,
			Subdivision: sub, City: s.City, Site: name,
		},
	}
}

// condition is a config.Condition of which the name and the time are decided already.
type condition struct{ config.Condition }

// local reports whether c reads the client.
func (c *condition) local() bool {
	return len(c.Continent)+len(c.Country)+len(c.Subdivision)+len(c.ASN)+len(c.Prefix)+len(c.Site) > 0
}

// holds reports whether the client matches.
func (c *condition) holds(at *locus) bool {
	p := at.place
	return (len(c.Continent) == 0 || slices.Contains(c.Continent, p.Continent)) &&
		(len(c.Country) == 0 || slices.Contains(c.Country, p.Country)) &&
		(len(c.Subdivision) == 0 || slices.Contains(c.Subdivision, p.Country+"-"+p.Subdivision)) &&
		(len(c.ASN) == 0 || slices.Contains(c.ASN, int(p.ASN))) &&
		(len(c.Site) == 0 || p.Site != "" && slices.Contains(c.Site, p.Site)) &&
		(len(c.Prefix) == 0 || slices.ContainsFunc(c.Prefix, at.in))
}

// static reports whether c may hold for a service of that name now, and when that changes;
// the zero time is never.
func static(c config.Condition, name string, now time.Time) (may bool, until time.Time) {
	may = len(c.Name) == 0 || slices.ContainsFunc(c.Name, func(g string) bool { ok, _ := glob.Match(g, name); return ok })
	if may && c.Time != nil {
		return c.Time.Holds(now)
	}
	return may, time.Time{}
}

// describe says what c asks for.
func describe(c config.Condition) string {
	var parts []string
	add := func(key string, values []string) {
		if len(values) > 0 {
			parts = append(parts, key+" "+strings.Join(values, "|"))
		}
	}
	add("continent", c.Continent)
	add("country", c.Country)
	add("subdivision", c.Subdivision)
	add("asn", texts(c.ASN))
	add("prefix", texts(c.Prefix))
	add("site", c.Site)
	add("name", c.Name)
	if c.Time != nil {
		add("time", []string{strings.TrimSpace(strings.Join(c.Time.Days, ",") + " " + c.Time.From + "-" + c.Time.To + " " + c.Time.Zone)})
	}
	if len(parts) == 0 {
		return "everybody"
	}
	return strings.Join(parts, ", ")
}

// texts returns values as fmt prints them.
func texts[T any](values []T) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = fmt.Sprint(v)
	}
	return out
}
