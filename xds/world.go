// Package xds is the config server of the proxies: it says to Envoy and to gRPC clients
// where to send requests next (xDS), and takes their load (LRS). Everything that it says
// comes from the engine's snapshot: the same health, weights and drains as the answers of
// DNS.
//
// A World is what one snapshot means for every proxy: immutable, marshalled once. A Server
// hands it out, and keeps no configuration of its own.
package xds

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/xds/bootstrap"
)

// Type is a type of xDS resources.
type Type uint8

// The types that are served, in the order in which they are sent: what others refer to goes
// before them, so that nothing ever refers to what a proxy does not have (make before break).
const (
	Runtimes Type = iota // asked for before all else, by a proxy that starts
	Clusters
	Endpoints
	Secrets
	Listeners
	Routes
	numTypes
)

const typePrefix = "type.googleapis.com/envoy."

var typeURLs = [numTypes]string{
	Runtimes:  typePrefix + "service.runtime.v3.Runtime",
	Clusters:  typePrefix + "config.cluster.v3.Cluster",
	Endpoints: typePrefix + "config.endpoint.v3.ClusterLoadAssignment",
	Secrets:   typePrefix + "extensions.transport_sockets.tls.v3.Secret",
	Listeners: typePrefix + "config.listener.v3.Listener",
	Routes:    typePrefix + "config.route.v3.RouteConfiguration",
}

var typeNames = [numTypes]string{Runtimes: "runtimes", Clusters: "clusters", Endpoints: "endpoints", Secrets: "secrets", Listeners: "listeners", Routes: "routes"}

// String returns the type as people read it: "clusters".
func (t Type) String() string { return typeNames[t] }

// URL returns the type as the protocol has it.
func (t Type) URL() string { return typeURLs[t] }

func typeOf(url string) (Type, bool) {
	i := slices.Index(typeURLs[:], url)
	return Type(max(i, 0)), i >= 0
}

// Resource is one marshalled resource. It is immutable.
type Resource struct {
	Name    string
	Version string // "<revision of the snapshot that brought this content>-<hash of the content>"

	any   *anypb.Any
	delta *discovery.Resource // the same as the incremental protocol carries it
	needs string              // of a cluster: the name of its endpoints
}

// Marshalled returns the resource as the protocol carries it. The caller must not change it.
func (r *Resource) Marshalled() *anypb.Any { return r.any }

// hash returns the part of a version that the content alone decides: it is the same on every
// node, and after a restart.
func hash(version string) string {
	_, h, _ := strings.Cut(version, "-")
	return h
}

// Client is the kind of a client: they want different resources for the same.
type Client uint8

// The kinds of clients.
const (
	Envoy Client = iota // and whatever is not known
	GRPC                // proxyless gRPC: its listeners are targets, its clusters report load where they are from
	numClients
)

// View is what the proxies of one pool are told. It is immutable.
type View struct {
	Pool   string
	Site   string
	Region string // of the site

	sets [numClients][numTypes]set
	kept bool // all but the endpoints are of a configuration before, since the newest cannot be said
}

// set is the resources of one type.
type set struct {
	byName  map[string]*Resource
	names   []string // sorted
	version string   // of the whole, as Resource.Version

	since   string   // version of the set before; empty: none
	changed []string // names that differ from it: with another content, new or gone
}

// Resource returns one resource that clients of that kind are given; nil if there is none.
func (v *View) Resource(c Client, t Type, name string) *Resource { return v.sets[c][t].byName[name] }

// Names returns the names of all resources of a type, sorted. The caller must not change it.
func (v *View) Names(c Client, t Type) []string { return v.sets[c][t].names }

// World is all that one snapshot says to all proxies. It is immutable.
type World struct {
	Revision uint64  // of the snapshot
	Plan     string  // of the snapshot
	Faults   []error // what could not be made of the configuration: there the last good stays

	Spills   []Spill            // where load over a pool's capacity goes elsewhere
	Pressure map[string]float64 // by pool of proxies: how much of the capacity of the pools that they prefer is asked for, 1 for all; without what has no capacity

	views   map[string]*View // by pool
	shares  map[flowKey]shares
	objects *config.Objects
	secrets map[string]Secret
	version string
}

// View returns what the proxies of that pool are told; nil for a pool that there is not.
func (w *World) View(pool string) *View { return w.views[pool] }

// Pools returns the names of the pools that have a view, sorted.
func (w *World) Pools() []string { return slices.Sorted(maps.Keys(w.views)) }

// Inputs are what a world is made of.
type Inputs struct {
	Snapshot *gslb.Snapshot
	Objects  *config.Objects   // that the snapshot was built from
	Secrets  map[string]Secret // certificates by the name that pools use
	Loads    []PoolLoad        // what proxies report, for pools with a capacity; may be empty
}

// Build makes the world of in. prev, which may be nil, is the world that it replaces: what
// did not change is shared with it. Where the configuration cannot be said to proxies a fault
// says so, and prev's resources stay but for the endpoints: health and load go on.
func Build(prev *World, in Inputs) *World {
	if prev == nil {
		prev = &World{}
	}
	w := &World{
		Revision: in.Snapshot.Revision, Plan: in.Snapshot.Plan,
		views: map[string]*View{}, objects: in.Objects, secrets: in.Secrets,
	}
	w.version = strconv.FormatUint(w.Revision, 10) + " plan " + w.Plan
	spill := newSpill(in, prev.shares)
	w.Spills, w.shares, w.Pressure = spill.spills(), spill.told(), spill.pressure()
	for _, p := range in.Snapshot.Pools {
		c := in.Objects.Pools[p.Name]
		if c.Upstream == nil && c.Proxy == nil {
			continue
		}
		old := prev.views[p.Name]
		b := builder{in: in, pool: p, config: c, spill: spill, view: &View{
			Pool: p.Name, Site: p.Site, Region: in.Objects.Sites[p.Site].EffectiveRegion(p.Site),
		}}
		if old != nil && !old.kept && prev.Plan == w.Plan && sameSecrets(prev.secrets, in.Secrets) {
			b.shared = old // only endpoints can have changed
		}
		err := b.build(old)
		if err != nil {
			w.Faults = append(w.Faults, fmt.Errorf("pool %s: %w", p.Name, err))
			if old == nil {
				continue
			}
			b.shared, b.view.kept = old, true
			err = b.build(old)
		}
		if err != nil {
			b.view = old // endpoints are ours alone: nothing that can be configured is a fault of them
		}
		w.views[p.Name] = b.view
	}
	return w
}

// builder makes one view.
type builder struct {
	in     Inputs
	pool   *gslb.Pool
	config config.Pool
	spill  *spill
	view   *View
	shared *View // whose resources but endpoints are still right; may be nil
}

// made is a resource on its way.
type made struct {
	name  string
	msg   proto.Message // nil: as it was in the view before
	needs string
	stamp func(revision uint64) // adds the revision to msg, once it is known that the rest has changed; nil: it has none
}

func (b *builder) build(old *View) error {
	upstreams := b.config.Upstreams()
	names := slices.Sorted(maps.Keys(upstreams))
	var endpoints []made
	for _, n := range names {
		m := made{name: b.service(n), msg: b.assignment(n, upstreams[n])}
		if b.tracing() != nil {
			m.stamp = func(revision uint64) { describe(m.msg.(*endpoint.ClusterLoadAssignment), revision) }
		}
		endpoints = append(endpoints, m)
	}
	if b.view.kept { // what is no upstream any more is one as yet to those who keep the clusters before
		for _, name := range old.Names(Envoy, Endpoints) {
			if !slices.ContainsFunc(endpoints, func(m made) bool { return m.name == name }) {
				endpoints = append(endpoints, made{name: name})
			}
		}
	}
	if err := b.put(old, []Client{Envoy, GRPC}, Endpoints, endpoints); err != nil {
		return err
	}
	if b.shared != nil {
		for c := range numClients {
			for t := range numTypes {
				if t != Endpoints {
					b.view.sets[c][t] = b.shared.sets[c][t]
				}
			}
		}
		return nil
	}
	for c := range numClients {
		var clusters, listeners, routes, secrets, runtimes []made
		for _, n := range names {
			m, err := b.cluster(n, upstreams[n], c)
			if err != nil {
				return err
			}
			clusters = append(clusters, made{name: n, msg: m, needs: needs(m)})
		}
		var err error
		switch c {
		case GRPC:
			for _, n := range names {
				listeners = append(listeners, made{name: n, msg: apiListener(n)})
				routes = append(routes, made{name: n, msg: apiRoutes(n)})
			}
		default:
			if listeners, routes, err = b.ingress(upstreams); err != nil {
				return err
			}
			if secrets, err = b.secrets(upstreams); err != nil {
				return err
			}
			if c := b.collector(); c != nil {
				clusters = append(clusters, made{name: c.Name, msg: c})
			}
			runtimes = []made{{name: bootstrap.Runtime, msg: b.runtimeLayer()}}
		}
		for t, list := range map[Type][]made{Runtimes: runtimes, Clusters: clusters, Listeners: listeners, Routes: routes, Secrets: secrets} {
			if err := b.put(old, []Client{c}, t, list); err != nil {
				return err
			}
		}
	}
	return nil
}

// service is the name of the endpoints of an upstream: that of the pool is in it, because
// each viewpoint has priorities and weights of its own.
func (b *builder) service(upstream string) string { return upstream + "@" + b.pool.Name }

// put marshals the resources of one type and shares with old what it has already.
func (b *builder) put(old *View, clients []Client, t Type, list []made) error {
	s := set{byName: make(map[string]*Resource, len(list))}
	revision := b.in.Snapshot.Revision
	sum := sha256.New()
	slices.SortFunc(list, func(a, b made) int { return strings.Compare(a.name, b.name) })
	for _, m := range list {
		var before *Resource
		if old != nil {
			before = old.sets[clients[0]][t].byName[m.name]
		}
		r, err := newResource(before, t, m, revision)
		if err != nil {
			return err
		}
		s.byName[m.name] = r
		s.names = append(s.names, m.name)
		fmt.Fprintf(sum, "%s %s\n", m.name, hash(r.Version))
	}
	s.version = versionOf(revision, shortHash(sum.Sum(nil)))
	if old != nil {
		before := old.sets[clients[0]][t]
		if hash(before.version) == hash(s.version) {
			s = before
		} else {
			s.follow(before)
		}
	}
	for _, c := range clients {
		b.view.sets[c][t] = s
	}
	return nil
}

// follow notes in what s differs from the set before it, once for all clients that have that.
func (s *set) follow(before set) {
	s.since = before.version
	for _, name := range s.names {
		if s.byName[name] != before.byName[name] {
			s.changed = append(s.changed, name)
		}
	}
	for _, name := range before.names {
		if s.byName[name] == nil {
			s.changed = append(s.changed, name)
		}
	}
}

// newResource marshals m, or returns before where that is the same.
func newResource(before *Resource, t Type, m made, revision uint64) (*Resource, error) {
	if m.msg == nil {
		return before, nil
	}
	if m.stamp != nil {
		m.stamp(0)
	}
	value, err := marshal(m.msg)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", t, m.name, err)
	}
	sum := sha256.Sum256(value)
	h := shortHash(sum[:])
	if before != nil && hash(before.Version) == h {
		return before, nil
	}
	if m.stamp != nil {
		m.stamp(revision)
		if value, err = marshal(m.msg); err != nil {
			return nil, fmt.Errorf("%s %s: %w", t, m.name, err)
		}
	}
	r := &Resource{Name: m.name, Version: versionOf(revision, h), any: &anypb.Any{TypeUrl: t.URL(), Value: value}, needs: m.needs}
	r.delta = &discovery.Resource{Name: r.Name, Version: r.Version, Resource: r.any}
	return r, nil
}

func marshal(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

func versionOf(revision uint64, hash string) string {
	return strconv.FormatUint(revision, 10) + "-" + hash
}

func shortHash(sum []byte) string {
	return fmt.Sprintf("%016x", binary.BigEndian.Uint64(sum))
}

// port returns the port of an endpoint for proxies.
func port(e gslb.Endpoint) uint32 { return uint32(cmp.Or(e.Port, 80)) }
