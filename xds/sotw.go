package xds

import (
	"maps"
	"slices"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// sotwRequest takes a request of the state-of-the-world protocol.
func (s *session) sotwRequest(req *discovery.DiscoveryRequest, now time.Time) {
	t, ok := typeOf(req.TypeUrl)
	if !ok {
		return
	}
	w := &s.watches[t]
	first := !w.asked
	if first {
		w.names, w.have = map[string]bool{}, map[string]*Resource{}
		w.asked = true
	} else {
		if req.ResponseNonce != "" && req.ResponseNonce != nonceText(w.nonce) {
			return // it answers what we have overtaken: the answer to the last one follows
		}
		w.answered(req.ResponseNonce, req.ErrorDetail, now)
	}
	names := req.ResourceNames
	same := !first && len(names) == len(w.names)
	for _, n := range names {
		same = same && w.names[n]
	}
	if same { // most requests are but an answer
		return
	}
	w.clean, s.matched = "", ""
	all := slices.Contains(names, wildcard) || len(names) == 0 && (first || w.all) && (t == Listeners || t == Clusters)
	more := all && !w.all
	if w.all && !all { // what it has by "all" only is not asked for any more
		maps.DeleteFunc(w.have, func(n string, _ *Resource) bool { return !slices.Contains(names, n) })
	}
	w.all = all
	before := len(w.names)
	names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == wildcard })
	more = w.setNames(names) || more
	// The first request is always answered, whatever version it names: that may be one of
	// another run of the server. So is one for more names, and for all types that are sent
	// whole, one for fewer.
	if first && (len(w.names) > 0 || w.all) || more || (t == Listeners || t == Clusters) && len(w.names) < before {
		w.dirty = true
	}
}

// sotwResponse is what goes out for u: listeners and clusters always whole, since what is
// missing there is deleted; of the other types what has changed.
func (s *session) sotwResponse(v *View, t Type, u update, version, nonce string) *discovery.DiscoveryResponse {
	w := &s.watches[t]
	list := u.resources
	if t == Listeners || t == Clusters {
		list = nil
		for _, name := range slices.Sorted(maps.Keys(w.have)) {
			if r := w.have[name]; r.any != nil && w.wants(name) {
				list = append(list, r)
			}
		}
	}
	res := &discovery.DiscoveryResponse{
		VersionInfo: version, TypeUrl: t.URL(), Nonce: nonce,
		Resources: make([]*anypb.Any, len(list)),
	}
	for i, r := range list {
		res.Resources[i] = s.told(t, r)
	}
	return res
}
