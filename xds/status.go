package xds

import (
	"cmp"
	"slices"
	"time"
)

// ClientStatus is one connected client, for people.
type ClientStatus struct {
	ID        string       `json:"id"`                // node.id
	Pool      string       `json:"pool"`              // node.cluster
	Site      string       `json:"site,omitempty"`    // node.locality.zone
	Addr      string       `json:"addr"`              // of the connection
	Agent     string       `json:"agent,omitempty"`   // envoy, gRPC Go, …
	Version   string       `json:"version,omitempty"` // of the agent
	Protocol  string       `json:"protocol"`          // delta or sotw
	Connected time.Time    `json:"connected"`
	Revision  uint64       `json:"revision"`          // of the newest snapshot that it has accepted all of
	Behind    bool         `json:"behind,omitempty"`  // something is on its way, or was refused
	Unknown   bool         `json:"unknown,omitempty"` // there is no such pool: it is told nothing
	Rate      float64      `json:"rate"`              // requests per second that it sends, as it reports
	Types     []TypeStatus `json:"types,omitempty"`

	seq uint64
}

// TypeStatus is what one client has of one type.
type TypeStatus struct {
	Type      string     `json:"type"`
	Resources int        `json:"resources"`
	Sent      string     `json:"sent,omitempty"`  // version of the last response
	Acked     string     `json:"acked,omitempty"` // version accepted last
	Rejected  *Rejection `json:"rejected,omitempty"`
}

// note keeps the client's status for people. v is nil for a pool that is not known.
func (c *client) note(w *World, v *View) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := &c.status
	st.Unknown = v == nil
	if v == nil {
		return
	}
	var types []TypeStatus
	refused := false
	for t := range numTypes {
		watch := &c.session.watches[t]
		if !watch.asked {
			continue
		}
		before := slices.IndexFunc(st.Types, func(ts TypeStatus) bool { return ts.Type == t.String() })
		if watch.rejected != nil {
			refused = true
			if before < 0 || st.Types[before].Rejected != watch.rejected {
				c.s.rejections.Add(1)
				if now := c.s.o.Now(); now.Sub(c.warned[t]) >= time.Second { // not as fast as it can refuse
					c.warned[t] = now
					c.s.log.Warn("a proxy refused its configuration; it keeps what it had",
						"proxy", st.ID, "pool", st.Pool, "type", t, "version", watch.rejected.Version, "reason", watch.rejected.Reason)
				}
			}
		}
		types = append(types, TypeStatus{
			Type: t.String(), Resources: len(watch.have), Sent: watch.version, Acked: watch.acked, Rejected: watch.rejected,
		})
	}
	st.Types = types
	st.Behind = true
	if c.session.synced(v) {
		st.Behind = refused
		if !refused {
			st.Revision = w.Revision
		}
	}
}

// Clients returns the status of every connected client, ordered by pool and name.
func (s *Server) Clients() []ClientStatus {
	rates := s.loads.rates()
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]ClientStatus, 0, len(s.clients))
	for c := range s.clients {
		c.mu.Lock()
		st := c.status
		c.mu.Unlock()
		st.Rate = rates[reporterKey{st.Pool, st.ID}]
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b ClientStatus) int {
		return cmp.Or(cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.ID, b.ID), cmp.Compare(a.seq, b.seq))
	})
	return out
}

// Stats are counters of a server.
type Stats struct {
	Clients    int    // connected now
	Pushes     uint64 // responses sent
	Rejections uint64 // responses that clients refused
	Stuck      uint64 // connections closed because a client took nothing
	Reports    uint64 // load reports taken
	Ignored    uint64 // load reports, or parts of them, that were not believed
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	n := len(s.clients)
	s.mu.Unlock()
	reports, ignored := s.loads.counts()
	return Stats{Clients: n, Pushes: s.pushes.Load(), Rejections: s.rejections.Load(), Stuck: s.stuck.Load(), Reports: reports, Ignored: ignored}
}
