package proxy

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"

	orcadata "github.com/cncf/xds/go/xds/data/orca/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// The header, or trailer, by which endpoints say their own load in answers (ORCA): as text of
// a kind that its first word names, or as gRPC has octets.
const (
	headerORCA    = "Endpoint-Load-Metrics"
	headerORCABin = "Endpoint-Load-Metrics-Bin"
)

// takeReport takes off h what the endpoint says of its load: it is for proxies only. It
// returns nil where there is nothing, or nothing that can be read.
func takeReport(h http.Header) *orcadata.OrcaLoadReport {
	text, bin := h.Get(headerORCA), h.Get(headerORCABin)
	h.Del(headerORCA)
	h.Del(headerORCABin)
	if text == "" && bin == "" || max(len(text), len(bin)) > maxReport {
		return nil
	}
	r, err := parseReport(text, bin)
	if err != nil {
		return nil
	}
	return r
}

func parseReport(text, bin string) (*orcadata.OrcaLoadReport, error) {
	r := &orcadata.OrcaLoadReport{}
	kind, rest, _ := strings.Cut(text, " ")
	if bin != "" {
		kind, rest = "BIN", bin
	}
	switch kind {
	case "BIN":
		b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(rest, "="))
		if err != nil {
			return nil, err
		}
		return r, proto.Unmarshal(b, r)
	case "JSON":
		return r, protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal([]byte(rest), r)
	case "TEXT":
		return r, parsePairs(r, rest)
	}
	return nil, fmt.Errorf("a report of kind %.8q; expected BIN, JSON or TEXT", kind)
}

// parsePairs reads "cpu_utilization=0.3, named_metrics.queue=4" into r.
func parsePairs(r *orcadata.OrcaLoadReport, text string) error {
	for pair := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return err
		}
		field, key, _ := strings.Cut(name, ".")
		switch one, entries := metric(r, field); {
		case one != nil:
			*one = v
		case entries != nil:
			if *entries == nil {
				*entries = map[string]float64{}
			}
			(*entries)[key] = v
		}
	}
	return nil
}

// said sums up what the endpoints of a pool say of themselves in answers, since the proxy
// started.
type said struct {
	mu   sync.Mutex
	sums map[string]tally // guarded by mu; by metric, at most maxMetrics
}

// tally is of a metric in n reports.
type tally struct{ total, n float64 }

// take takes off the header, or trailer, what an endpoint says, and keeps those metrics of it.
func (s *said) take(h http.Header, metrics []string) {
	r := takeReport(h)
	if r == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, v := range readReport(r, metrics) {
		if s.sums == nil {
			s.sums = map[string]tally{}
		}
		if old, known := s.sums[name]; known || len(s.sums) < maxMetrics {
			s.sums[name] = tally{old.total + v, old.n + 1}
		}
	}
}

func (s *said) all() map[string]tally {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.sums)
}

// meansSince returns the means over the reports that came after before.
func meansSince(before, now map[string]tally) map[string]float64 {
	var out map[string]float64
	for name, s := range now {
		if n := s.n - before[name].n; n > 0 {
			if out == nil {
				out = map[string]float64{}
			}
			out[name] = max(0, s.total-before[name].total) / n
		}
	}
	return out
}
