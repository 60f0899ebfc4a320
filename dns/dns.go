// Package dns is the authoritative server: sockets, the path of a query, and its answer.
package dns

import (
	"github.com/meridian-gslb/meridian/dns/zone"
	"github.com/meridian-gslb/meridian/gslb"
)

// Data is what queries are answered from: immutable, replaced as a whole. The server reads
// it through one atomic pointer, once a query (or once a batch).
type Data struct {
	Snapshot *gslb.Snapshot
	Zones    *zone.Set // knows which owner names are steered, by index into Snapshot.Services
}
