package geo_test

import (
	"bytes"
	"net"
	"testing"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"github.com/meridian-gslb/meridian/testdata/geo/makedb"
)

// asnDatabase makes an ASN database; prefixes must not overlap but may nest, shorter first
// in the order of text.
func asnDatabase(t *testing.T, asns map[string]uint32) []byte {
	t.Helper()
	w, err := mmdbwriter.New(mmdbwriter.Options{BuildEpoch: makedb.Epoch, DatabaseType: "Meridian-ASN", IncludeReservedNetworks: true})
	if err != nil {
		t.Fatal(err)
	}
	for bits := range 33 {
		for prefix, asn := range asns {
			_, n, err := net.ParseCIDR(prefix)
			if err != nil {
				t.Fatal(err)
			}
			if ones, _ := n.Mask.Size(); ones != bits {
				continue
			}
			if err := w.Insert(n, mmdbtype.Map{"autonomous_system_number": mmdbtype.Uint32(asn)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	var b bytes.Buffer
	if _, err := w.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
