// Package demogeo holds the geography of the demo, made from demo.csv.
package demogeo

import _ "embed"

// City is a MaxMind City database of the networks in Table. Treat it as constant.
//
//go:embed demo.mmdb
var City []byte

// Table is the readable source of City: lines of network, city, subdivision, country,
// continent, latitude and longitude.
//
//go:embed demo.csv
var Table string
