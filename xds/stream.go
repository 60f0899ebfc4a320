package xds

import (
	"slices"
	"strconv"
	"strings"
	"time"

	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// What one client may ask for.
const (
	maxNames   = 20000 // names of one type
	maxName    = 1024  // octets of one
	maxVersion = 64    // octets of a version that may be one of ours
	nameCost   = 64    // octets that a name costs beside its own, about
)

// wildcard is the name that stands for every resource of a type.
const wildcard = "*"

// watch is what one stream asked for of one type, and what it was given. Its rules are those
// of both variants of the protocol; what differs is in delta.go and sotw.go.
type watch struct {
	asked bool // there was a request for this type
	all   bool // every resource of the type
	names map[string]bool
	held  int                  // octets of names
	have  map[string]*Resource // what the client has, as far as we said; an absent one was told to be so

	nonce    uint64   // of the last response
	waiting  bool     // for the answer to that
	version  string   // of the last response
	sent     []string // names in the last response
	acked    string   // version accepted last
	rejected *Rejection
	dirty    bool   // an answer is owed, whatever has changed
	clean    string // version of the set that the client has all of; empty: not known
}

// absent is what a client has of a name that it was told there is nothing of.
var absent = &Resource{Version: "0-absent"}

// stale is what a client has of a name in a version that is not ours.
var stale = &Resource{Version: "0-stale"}

// none is what a client has of a name that it was told to be endpoints, but none.
var none = &Resource{Version: "0-none"}

// Rejection is a response that a client refused (NACK). It keeps what it had before.
type Rejection struct {
	Version   string    `json:"version"`
	Resources []string  `json:"resources,omitempty"` // that were in the response
	Reason    string    `json:"reason"`              // in the client's words
	At        time.Time `json:"at"`
}

// update is what is to be sent of one type.
type update struct {
	resources []*Resource // ordered by name
	removed   []string
	forced    bool   // send it even if it is empty
	version   string // of the set that the client has all of with it; empty: something is held back
}

func (u *update) empty() bool { return len(u.resources) == 0 && len(u.removed) == 0 && !u.forced }

// session is the state of one stream: pure, without a socket or a clock. The zero value with
// a client kind is a stream that has not asked for anything.
type session struct {
	client  Client
	id      string // node.id
	sotw    bool
	watches [numTypes]watch
	matched string // version of the clusters whose endpoints are all asked for; empty: not known
}

// answered takes the answer to a response, if to the last one: nonce is the one that it names, and
// refused why the client did not take it; nil: it did.
func (w *watch) answered(nonce string, refused *rpcstatus.Status, now time.Time) {
	if nonce == "" || nonce != strconv.FormatUint(w.nonce, 10) || !w.waiting {
		return
	}
	w.waiting = false
	if refused != nil {
		reason := strings.TrimSpace(clipTo(refused.GetMessage(), maxReason))
		w.rejected = &Rejection{Version: w.version, Resources: w.sent, Reason: reason, At: now}
	} else {
		w.acked, w.rejected = w.version, nil
	}
	w.sent = nil
}

// wants reports whether the client asked for that name.
func (w *watch) wants(name string) bool { return w.all || w.names[name] }

// pending returns what a client of v lacks of type t.
func (s *session) pending(v *View, t Type) update {
	w := &s.watches[t]
	set := &v.sets[s.client][t]
	if !w.asked || w.clean == set.version && !w.dirty {
		return update{}
	}
	u := update{forced: w.dirty, version: set.version}
	if w.clean != "" && w.clean == set.since { // as with most clients at most times
		for _, name := range set.changed {
			w.look(&u, set, t, name)
		}
	} else {
		w.lookAtAll(&u, set, t)
	}
	if len(u.removed) > 0 && s.holds(v, t) {
		u.removed, u.version = nil, ""
	}
	slices.SortFunc(u.resources, func(a, b *Resource) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(u.removed)
	if u.empty() {
		w.clean = u.version
	}
	return u
}

// lookAtAll adds to u whatever the client lacks.
func (w *watch) lookAtAll(u *update, set *set, t Type) {
	if w.all {
		for _, name := range set.names {
			w.look(u, set, t, name)
		}
	}
	for name := range w.names {
		if !w.all || set.byName[name] == nil {
			w.look(u, set, t, name)
		}
	}
	for name := range w.have {
		if set.byName[name] == nil && !w.names[name] {
			w.look(u, set, t, name)
		}
	}
}

// look adds to u what the client lacks of one name.
func (w *watch) look(u *update, set *set, t Type, name string) {
	r, have, asked := set.byName[name], w.have[name], w.names[name]
	switch {
	case r != nil:
		if (w.all || asked) && have != r && (have == nil || hash(have.Version) != hash(r.Version)) {
			u.resources = append(u.resources, r)
		}
	case !asked:
		if have != nil && have != absent {
			u.removed = append(u.removed, name)
		}
	case t != Endpoints:
		if have != absent {
			u.removed = append(u.removed, name)
		}
	case have == nil || have == stale:
		// A name without endpoints is answered with none: silence would hold the cluster's
		// warming until its timeout. But endpoints that the client was given stay, for as long
		// as it asks: the cluster that needs them is on its way out.
		u.resources = append(u.resources, emptyAssignment(name))
	}
}

// holds reports whether removals of type t must wait: a cluster goes only when the client
// has taken the routes that do not lead to it any more.
func (s *session) holds(v *View, t Type) bool {
	if t != Clusters && t != Secrets {
		return false
	}
	for _, later := range []Type{Listeners, Routes} {
		w := &s.watches[later]
		if !w.asked {
			continue
		}
		if w.waiting || w.rejected != nil {
			return true
		}
		for name, have := range w.have {
			if r := v.sets[s.client][later].byName[name]; r == nil && have != absent || r != nil && hash(have.Version) != hash(r.Version) {
				return true
			}
		}
	}
	return false
}

// record notes that u is sent as version, and returns the nonce.
func (s *session) record(t Type, u update, version string) string {
	w := &s.watches[t]
	if w.have == nil {
		w.have = map[string]*Resource{}
	}
	w.sent = nil
	for _, r := range u.resources {
		if t == Clusters && r.needs != "" && w.have[r.Name] != nil {
			// A cluster that changes is warmed anew, and waits for endpoints that it has
			// already: they must come again.
			e := &s.watches[Endpoints]
			if e.wants(r.needs) && e.have[r.needs] != nil {
				e.have[r.needs], e.clean = stale, ""
			}
		}
		w.have[r.Name] = r
		if r.Version == none.Version { // whatever name is asked for: it is not kept twice
			w.have[r.Name] = none
		}
		w.sent = append(w.sent, r.Name)
	}
	for _, name := range u.removed {
		if w.names[name] {
			w.have[name] = absent
		} else {
			delete(w.have, name)
		}
	}
	w.nonce++
	w.waiting, w.dirty, w.version, w.clean = true, false, version, u.version
	return strconv.FormatUint(w.nonce, 10)
}

// synced reports whether the client has taken, or refused, all of v that it asked for, and has
// asked for the endpoints of every cluster that it has.
func (s *session) synced(v *View) bool {
	if clusters := &s.watches[Clusters]; clusters.clean == "" || clusters.clean != s.matched {
		for _, c := range clusters.have {
			if c.needs != "" && !s.watches[Endpoints].wants(c.needs) {
				return false // just connected: it will ask, and cannot use the cluster before
			}
		}
		s.matched = clusters.clean
	}
	for t := range numTypes {
		if s.watches[t].waiting {
			return false
		}
		if u := s.pending(v, t); !u.empty() {
			return false
		}
	}
	return true
}

// emptyAssignment is the answer for a name without endpoints.
func emptyAssignment(name string) *Resource {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(&endpoint.ClusterLoadAssignment{ClusterName: name})
	if err != nil {
		panic("xds: " + err.Error())
	}
	r := &Resource{Name: name, Version: none.Version, any: &anypb.Any{TypeUrl: Endpoints.URL(), Value: value}}
	r.delta = &discovery.Resource{Name: name, Version: r.Version, Resource: r.any}
	return r
}

// octets returns what the names that the client asks for take, about.
func (s *session) octets() int {
	sum := 0
	for t := range s.watches {
		sum += s.watches[t].held
	}
	return sum
}

// addName asks for a name more, within bounds, and says whether it is asked for now.
func (w *watch) addName(name string) bool {
	switch {
	case w.names[name]:
		return true
	case len(name) > maxName || len(w.names) >= maxNames:
		return false
	}
	w.names[name] = true
	w.held += len(name) + nameCost
	return true
}

func (w *watch) dropName(name string) {
	if w.names[name] {
		delete(w.names, name)
		w.held -= len(name) + nameCost
	}
}

// setNames replaces the names that are asked for, as far as they are within bounds, and says
// whether any is new.
func (w *watch) setNames(names []string) (more bool) {
	before := w.names
	w.names, w.held = map[string]bool{}, 0
	for _, n := range names {
		if w.addName(n) && !before[n] {
			more = true
		}
	}
	for n := range before {
		if !w.names[n] && !w.all {
			delete(w.have, n)
		}
	}
	return more
}
