package xds

import (
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// deltaRequest takes a request of the incremental protocol.
func (s *session) deltaRequest(req *discovery.DeltaDiscoveryRequest, now time.Time) {
	t, ok := typeOf(req.TypeUrl)
	if !ok {
		return // a type that we do not serve: the client goes on without
	}
	w := &s.watches[t]
	if w.names == nil {
		w.names, w.have = map[string]bool{}, map[string]*Resource{}
	}
	w.answered(req.ResponseNonce, req.ErrorDetail, now)

	first := !w.asked
	w.asked = true
	if first || len(req.ResourceNamesSubscribe) > 0 || len(req.ResourceNamesUnsubscribe) > 0 {
		w.clean, s.matched = "", ""
	}
	for name, version := range req.InitialResourceVersions {
		if first && len(name) <= maxName && len(w.have) < maxNames {
			if len(version) > maxVersion {
				version = ""
			}
			w.have[name] = &Resource{Name: name, Version: version}
			w.held += len(name) + nameCost
		}
	}
	for _, name := range req.ResourceNamesUnsubscribe {
		if name == wildcard {
			w.all = false
			for n := range w.have {
				if !w.names[n] {
					delete(w.have, n)
				}
			}
			continue
		}
		w.dropName(name)
		if !w.all {
			delete(w.have, name)
		}
	}
	// No name in the first request for a type means all of it.
	if first && len(req.ResourceNamesSubscribe) == 0 {
		w.all = true
	}
	for _, name := range req.ResourceNamesSubscribe {
		switch {
		case name == wildcard:
			w.all = true
		case w.addName(name):
			// To subscribe again is to ask again: the answer must come even if nothing has
			// changed.
			if _, told := req.InitialResourceVersions[name]; !told {
				delete(w.have, name)
			}
		}
	}
	// What a client has of another run of the server and no longer asks for is nothing to us.
	if first && !w.all {
		for name := range w.have {
			if !w.names[name] {
				delete(w.have, name)
			}
		}
	}
	if first && w.all {
		w.dirty = true // an answer is owed even if there is nothing: clients wait for it to start
	}
}

// deltaResponse is u as the incremental protocol carries it.
func (s *session) deltaResponse(t Type, u update, version, nonce string) *discovery.DeltaDiscoveryResponse {
	res := &discovery.DeltaDiscoveryResponse{
		SystemVersionInfo: version, TypeUrl: t.URL(), RemovedResources: u.removed, Nonce: nonce,
		Resources: make([]*discovery.Resource, len(u.resources)),
	}
	for i, r := range u.resources {
		res.Resources[i] = r.delta
		if told := s.told(t, r); told != r.any {
			res.Resources[i] = &discovery.Resource{Name: r.Name, Version: r.Version, Resource: told}
		}
	}
	return res
}
