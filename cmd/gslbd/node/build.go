package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/meridian-gslb/meridian/dns"
	"github.com/meridian-gslb/meridian/dns/zone"
	"github.com/meridian-gslb/meridian/geo"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/gslb/store"
	"github.com/meridian-gslb/meridian/tracing"
)

// builder is the one writer of the node's data: it waits until the objects, the places, a
// verdict or the clock asks for a new snapshot, compiles it, and stores the whole.
type builder struct {
	n       *Node
	kick    chan struct{}
	changed func(*gslb.Snapshot)

	mu     sync.Mutex
	latest *store.View       // what the store said last; nil before it said anything
	stale  bool              // the zone files may have changed
	forced bool              // they are read again even if nothing shows a change
	wrong  map[string]string // what is refused now, by what it is: the last good one stays

	// Only the run goroutine.
	revision uint64
	applied  *config.Objects
	zones    map[string]*zone.Zone
	sources  map[string][32]byte         // of zones: what they were read from
	looks    map[string]stamp            // of the zones' files, when they were read
	parts    map[string]map[string]stamp // of the files that zones include, likewise; not of zones without
	set      *zone.Set                   // of zones, without services
	early    Zones                       // what Load read and the builder has not taken over yet

	included atomic.Pointer[map[string]stamp] // parts of all zones together; not to be changed

	again gslb.Decision // only the goroutine of the recorder

	archive *gslb.Archive // of past snapshots: what tracing describes records with, and operators ask for
}

// settle is how long a burst of changes may go on before it is compiled as one.
const settle = 5 * time.Millisecond

// firstRound is the longest wait for a first round of probes where nothing is known yet.
const firstRound = 10 * time.Second

func newBuilder(n *Node, keep config.History, early Zones) *builder {
	return &builder{
		n:       n,
		archive: gslb.NewArchive(keep.Snapshots, keep.Age.Std()),
		kick:    make(chan struct{}, 1),
		wrong:   map[string]string{},
		zones:   map[string]*zone.Zone{},
		sources: map[string][32]byte{},
		looks:   map[string]stamp{},
		parts:   map[string]map[string]stamp{},
		early:   early,
	}
}

// view takes what the store says.
func (b *builder) view(v store.View) {
	b.mu.Lock()
	b.latest = &v
	b.mu.Unlock()
	b.wake()
}

// reread asks for the zone files to be read again: those that changed, or with forced all.
func (b *builder) reread(forced bool) {
	b.mu.Lock()
	b.stale, b.forced = true, b.forced || forced
	b.mu.Unlock()
	b.wake()
}

func (b *builder) wake() {
	select {
	case b.kick <- struct{}{}:
	default:
	}
}

// report logs that what (the snapshot, a zone, the configuration) was refused and keeps it
// for the node's status; a nil error takes it back.
func (b *builder) report(what, kept string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		delete(b.wrong, what)
		return
	}
	b.wrong[what] = fmt.Sprintf("%s refused, %s: %v", what, kept, err)
	b.n.log.Error(what+" refused; "+kept, "err", err)
}

// faults are the sentences of what is refused now.
func (b *builder) faults() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Sorted(maps.Values(b.wrong))
}

// lastView returns what the store said last, nil before it said anything.
func (b *builder) lastView() *store.View {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.latest
}

// zonesStale says whether the zones of o must be read, and whether all of them, and forgets
// that they had to.
func (b *builder) zonesStale(o *config.Objects) (stale, forced bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	stale, forced = b.stale || b.applied != o, b.forced
	b.stale, b.forced = false, false
	return stale, forced
}

// run compiles a snapshot whenever something asks for one, until ctx ends.
func (b *builder) run(ctx context.Context) error {
	n := b.n
	known := b.restore()
	next := time.NewTimer(time.Hour)
	next.Stop()
	defer next.Stop()
	save := newSaver(n.statePath(), n.log)
	defer save.flush()

	var targets *config.Objects // whose endpoints are probed
	wait := !known              // for a first verdict of every endpoint
	var limit <-chan time.Time
	var cause string // what asked for a snapshot, for its span
	var told bool    // that there is no zone
	for {
		var saveC <-chan time.Time
		if save.due != nil {
			saveC = save.due.C
		}
		select {
		case <-ctx.Done():
			return nil
		case <-saveC:
			save.flush()
			continue
		case <-limit:
			wait, cause = false, "first round over"
		case <-b.kick:
			cause = "objects"
		case <-n.places.Changed():
			cause = "places"
		case <-n.health.Changed():
			cause = "verdicts"
		case <-next.C:
			cause = "clock"
		}
		v := b.lastView()
		if v == nil || n.data.Load() == nil && len(v.Objects.Zones) == 0 {
			if v != nil && !told {
				told = true
				n.log.Warn("the configuration has no zone: nothing is probed or answered until it has one")
			}
			continue // nothing is known: not ready
		}
		if targets != v.Objects {
			targets = v.Objects
			n.health.Configure(targets)
			if wait && limit == nil {
				limit = time.After(firstRound)
			}
		}
		// Verdicts come from the last known good file and from peers; with neither, nothing is
		// answered before one round of probes.
		if wait && slices.Contains(slices.Collect(maps.Values(n.health.Verdicts())), gslb.Unknown) {
			continue
		}
		wait = false
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settle):
		}
		span, done := n.cold.work("gslb.build", attribute.String(tracing.AttrCause, cause))
		s, err := b.rebuild(b.lastView())
		if err == nil {
			span.SetAttributes(attribute.Int64(tracing.AttrRevision, int64(s.Revision)), attribute.String(tracing.AttrPlan, s.Plan),
				attribute.Int(tracing.AttrServices, len(s.Services)), attribute.Int(tracing.AttrPools, len(s.Pools)))
		}
		done(err)
		if err != nil {
			b.report("snapshot", "the last one stays", err)
			continue
		}
		b.report("snapshot", "", nil)
		if !s.Next.IsZero() {
			next.Reset(max(time.Until(s.Next), 10*time.Millisecond))
		}
		save.put(b.state(s))
	}
}

// rebuild compiles v with the present places and verdicts, and stores the result.
func (b *builder) rebuild(v *store.View) (*gslb.Snapshot, error) {
	n := b.n
	if stale, forced := b.zonesStale(v.Objects); stale {
		if err := b.readZones(v.Objects, forced); err != nil {
			return nil, err
		}
	}
	b.applied = v.Objects
	if n.data.Load() == nil && len(b.zones) == 0 {
		return nil, errors.New("not one of the zones can be served")
	}
	start := time.Now()
	var prev *gslb.Snapshot
	if d := n.data.Load(); d != nil {
		prev = d.Snapshot
	}
	verdicts := n.health.Verdicts()
	s, err := gslb.Build(prev, gslb.Inputs{
		Revision: b.revision + 1,
		Objects:  v.Objects,
		Geo:      n.places.Current(),
		Verdicts: verdicts,
		Regional: n.health.Regional(),
		Since:    gslb.Turned(prev, verdicts, start),
		Flipping: n.health.Flipping(),
		Load:     n.xds.engineLoad(),
		RTT:      n.rtts.table.Load(),
		Names:    n.names.all(),
		Now:      start,
	})
	if err != nil {
		return nil, err
	}
	set, err := b.set.WithServices(servicesIn(b.set, s))
	if err != nil {
		return nil, err
	}
	b.revision++
	n.data.Store(&dns.Data{Snapshot: s, Zones: set})
	b.archive.Put(s)
	if n.linker != nil {
		n.linker.SetTTL(longestTTL(v.Objects))
	}
	n.health.SetInfo(s.Plan)
	n.log.Debug("snapshot", "revision", s.Revision, "plan", s.Plan, "took", time.Since(start))
	if prev == nil {
		close(n.ready)
	}
	n.xds.offer(s, v.Objects)
	n.admin.Updated()
	if b.changed != nil {
		b.changed(s)
	}
	return s, nil
}

// longestTTL returns the longest TTL of a service.
func longestTTL(o *config.Objects) (longest time.Duration) {
	for _, s := range o.Services {
		longest = max(longest, s.EffectiveTTL())
	}
	return longest
}

// readZones reads the zones that changed, or with forced all of them. A zone that has a fault
// keeps its last good version, and takes no other zone down.
func (b *builder) readZones(o *config.Objects, forced bool) error {
	defer b.gatherParts()
	defer clear(b.early) // of use at the start alone, and large
	for name, z := range o.Zones {
		look := stampOf(z.File)
		if _, known := b.sources[name]; !forced && known && z.File != "" && look == b.looks[name] && same(b.parts[name]) {
			continue
		}
		b.looks[name] = look
		text, file, err := zoneText(z)
		if err != nil {
			delete(b.sources, name) // whatever it is when it is there again, it is read
		} else {
			if !forced && b.sources[name] == sha256.Sum256([]byte(text)) && same(b.parts[name]) {
				continue // as it was, good or bad
			}
			err = b.readZone(name, file, text, o.Services)
		}
		kept := "it is not served"
		if b.zones[name] != nil {
			kept = "its last good version stays"
		}
		b.report("zone "+name, kept, err)
	}
	gone := func(name string) bool { _, ok := o.Zones[name]; return !ok }
	maps.DeleteFunc(b.zones, func(name string, _ *zone.Zone) bool { return gone(name) })
	maps.DeleteFunc(b.sources, func(name string, _ [32]byte) bool {
		if gone(name) {
			b.report("zone "+name, "", nil)
			delete(b.looks, name)
			delete(b.parts, name)
		}
		return gone(name)
	})
	set, err := zone.NewSet(slices.Collect(maps.Values(b.zones)), nil)
	if err == nil {
		b.set = set
	}
	return err
}

// readZone reads text as the zone of that name, unless Load has read the same.
func (b *builder) readZone(name, file, text string, services map[string]config.Service) error {
	r, ok := b.early[name]
	if !ok || r.source != sha256.Sum256([]byte(text)) || !same(r.parts) {
		r = read(name, file, text)
	}
	b.sources[name] = r.source // a faulty text is reported once
	delete(b.parts, name)
	if len(r.parts) > 0 {
		b.parts[name] = r.parts
	}
	for _, w := range r.warningsBeside(services) {
		b.n.log.Warn("zone", "zone", name, "warning", w.String())
	}
	if r.err != nil {
		return r.err
	}
	b.zones[name] = r.zone
	return nil
}

// Zones are zones as Load read them, by name.
type Zones map[string]reading

// reading is what became of a zone's text.
type reading struct {
	source   [32]byte         // hash of the text
	parts    map[string]stamp // of the files that it includes
	zone     *zone.Zone       // nil with err
	warnings []zone.Warning
	err      error
}

// read reads text as the zone of that name.
func read(name, file, text string) reading {
	z, files, warnings, err := zone.ParseFiles(strings.NewReader(text), file, name)
	return reading{source: sha256.Sum256([]byte(text)), parts: stampsOf(files), zone: z, warnings: warnings, err: err}
}

// warningsBeside returns the warnings without those of hosts that have no address in the zone but are
// services.
func (r *reading) warningsBeside(services map[string]config.Service) []zone.Warning {
	return slices.DeleteFunc(slices.Clone(r.warnings), func(w zone.Warning) bool {
		_, steered := services[w.Host]
		return steered
	})
}

// gatherParts makes the parts of all zones known to who looks at files.
func (b *builder) gatherParts() {
	if b.included.Load() == nil && len(b.parts) == 0 {
		return
	}
	all := map[string]stamp{}
	for _, parts := range b.parts {
		maps.Copy(all, parts)
	}
	b.included.Store(&all)
}

// zoneText returns the master file's text of z, and the file that it is in; none lets
// $INCLUDE read nothing.
func zoneText(z config.Zone) (text, file string, err error) {
	if z.File == "" {
		return z.Records, "", nil
	}
	text, err = zone.ReadFile(z.File)
	return text, z.File, err
}

// servicesIn returns the services of s that lie in a zone of set, by owner name.
func servicesIn(set *zone.Set, s *gslb.Snapshot) map[string]int32 {
	in := map[string]int32{}
	for _, svc := range s.Services {
		if name, err := zone.FromString(svc.Name); err == nil && set.FindZone(zone.AppendLower(nil, name)) != nil {
			in[svc.Name] = int32(svc.Index)
		}
	}
	return in
}

// Check reports every fault of the configuration file at path, its zones and its databases
// together, and what else is worth a warning.
func Check(path string) (warnings []string, err error) {
	_, _, warnings, err = Load(path)
	return warnings, err
}

// Load reads the configuration file at path for a node, and the zones that it names. Its error is
// that of Check.
func Load(path string) (f *config.File, zones Zones, warnings []string, err error) {
	f, err = config.ReadFile(path)
	if f == nil {
		return nil, nil, nil, err
	}
	faults := []error{err}
	zones, warnings, err = checkZones(&f.Objects)
	faults = append(faults, err)
	places := geoConfig(f)
	if faults[0] != nil {
		places.Overrides = nil // their faults are told already
	}
	m, err := geo.Open(places)
	faults = append(faults, placed(f, err))
	if errors.Join(faults...) != nil {
		return f, zones, warnings, errors.Join(faults...)
	}
	s, err := gslb.Build(nil, gslb.Inputs{Revision: 1, Objects: &f.Objects, Geo: m, Now: time.Now()})
	if err == nil {
		var all []*zone.Zone
		for _, name := range slices.Sorted(maps.Keys(zones)) {
			all = append(all, zones[name].zone)
		}
		set, fault := zone.NewSet(all, nil)
		if err = fault; err == nil {
			_, err = set.WithServices(servicesIn(set, s))
		}
		err = errors.Join(err, checkProxies(f, s))
	}
	return f, zones, warnings, placed(f, err)
}

// aboutObject is how an error begins that is about an object.
var aboutObject = regexp.MustCompile(`^(site|zone|probe|pool|chain|service) (\S+): `)

// placed gives each error that names an object of f, or a file of its databases, the line where
// that stands.
func placed(f *config.File, err error) error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, placed(f, e))
		}
		return errors.Join(all...)
	}
	text := err.Error()
	if m := aboutObject.FindStringSubmatch(text); m != nil {
		if _, ok := f.Object(m[1]+"s", m[2]); ok {
			return f.Fault(errors.New(text[len(m[0]):]), m[1]+"s", m[2])
		}
	}
	for key, file := range map[string]string{"city": f.Node.Geo.City, "asn": f.Node.Geo.ASN} {
		if rest, ok := strings.CutPrefix(text, "geo: "+file+": "); ok && file != "" {
			return f.Fault(fmt.Errorf("%s: %s", file, rest), "node", "geo", key)
		}
	}
	return err
}

// checkZones reads the zones of o, as many at once as there are cores, and reports every fault in
// them.
func checkZones(o *config.Objects) (zones Zones, warnings []string, err error) {
	names := o.Names("zones")
	readings, lost := make([]reading, len(names)), make([]bool, len(names))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(names)) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(names); i = int(next.Add(1)) - 1 {
				text, file, err := zoneText(o.Zones[names[i]])
				if lost[i] = err != nil; err == nil && (text != "" || file != "") { // neither is a fault of the configuration
					readings[i] = read(names[i], file, text)
				}
			}
		})
	}
	wg.Wait()
	zones = make(Zones, len(names))
	unread := &config.Objects{}
	var faults []error
	for i, r := range readings {
		for _, w := range r.warningsBeside(o.Services) {
			warnings = append(warnings, w.String())
		}
		switch {
		case lost[i]:
			unread.Take(o, "zones", names[i])
		case r.err != nil:
			faults = append(faults, r.err)
		case r.zone != nil:
			zones[names[i]] = r
		}
	}
	_, err = config.ResolveFiles(unread) // says where they stand
	return zones, warnings, errors.Join(append([]error{err}, faults...)...)
}
