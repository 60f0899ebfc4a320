package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/tracing"
)

// A record is described with the addresses that were answered, in full and briefly alike.
func TestDescribe(t *testing.T) {
	d := loadWorld(t).data(t)
	s := d.Snapshot
	service := -1
	for i, svc := range s.Services {
		if svc.Name == "www.example.com" {
			service = i
		}
	}
	client := netip.MustParseAddr("198.51.100.7")
	var again, both gslb.Decision
	s.Decide(s.Services[service], gslb.Client{Addr: client, Source: 32}, &both)
	if len(both.V4) == 0 || len(both.V6) == 0 {
		t.Fatalf("decided %v and %v, want addresses of both families", both.V4, both.V6)
	}
	for _, tc := range []struct {
		qtype uint16
		want  []netip.Addr
	}{
		{typeA, both.V4}, {typeAAAA, both.V6}, {typeANY, both.V4}, {typeHTTPS, slices.Concat(both.V4, both.V6)},
	} {
		q := &tracing.Query{Service: int32(service), Client: client.As16(), Source: 32, Qtype: tc.qtype}
		for what, f := range map[string]tracing.Facts{"in full": Describe(s, q), "briefly": DescribeBriefly(s, q, &again)} {
			if f.Pool != both.Pool.Name || f.Service != "www.example.com" || fmt.Sprint(f.Answers) != fmt.Sprint(tc.want) {
				t.Errorf("type %d, %s: got %v of %s, want %v of %s", tc.qtype, what, f.Answers, f.Pool, tc.want, both.Pool.Name)
			}
		}
	}
	if f := Describe(s, &tracing.Query{Service: -1}); f.Service != "" || f.Answers != nil {
		t.Errorf("nothing was steered, and yet %+v", f)
	}
}
