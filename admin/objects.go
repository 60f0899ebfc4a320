package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb/config"
	"github.com/meridian-gslb/meridian/gslb/store"
)

// stateDrain is the state of config.State that drain sets.
const stateDrain = "drain"

// maxText bounds an author and a reason, in octets.
const maxText = 512

// applyTimeout bounds one transaction of the store.
const applyTimeout = 10 * time.Second

// view returns the objects that the node serves. Where there are none yet that is answered
// here, and ok is false.
func (s *Server) view(w http.ResponseWriter) (v store.View, ok bool) {
	if v = s.o.View(); v.Objects == nil {
		_, reason := s.o.Ready()
		fail(w, http.StatusServiceUnavailable, "not ready: "+reason, "the node has no valid configuration yet; see its log")
		return v, false
	}
	return v, true
}

// objects answers every object.
func (s *Server) objects(w http.ResponseWriter, _ *http.Request) {
	if v, ok := s.view(w); ok {
		reply(w, api.Objects{Revision: v.Revision, Objects: v.Objects})
	}
}

// objectsOfKind answers the objects of one kind by name.
func (s *Server) objectsOfKind(w http.ResponseWriter, r *http.Request) {
	v, ok := s.view(w)
	if !ok {
		return
	}
	kind, ok := kindOf(w, r)
	if !ok {
		return
	}
	out := map[string]any{}
	for _, name := range v.Objects.Names(kind) {
		out[name], _ = v.Objects.Object(kind, name)
	}
	reply(w, out)
}

// object answers one object.
func (s *Server) object(w http.ResponseWriter, r *http.Request) {
	v, ok := s.view(w)
	if !ok {
		return
	}
	kind, ok := kindOf(w, r)
	if !ok {
		return
	}
	name := r.PathValue("name")
	if kind == "services" || kind == "zones" {
		name = config.CanonicalName(name)
	}
	o, ok := v.Objects.Object(kind, name)
	if !ok {
		unknown(w, strings.TrimSuffix(kind, "s"), name, v.Objects.Names(kind))
		return
	}
	reply(w, o)
}

// deleteObject takes one object out of the store, also one that is not served since it is not
// valid there.
func (s *Server) deleteObject(w http.ResponseWriter, r *http.Request) {
	kind, ok := kindOf(w, r)
	if !ok {
		return
	}
	name := r.PathValue("name")
	if kind == "services" || kind == "zones" {
		name = config.CanonicalName(name)
	}
	c := edit{author: r.URL.Query().Get("author"), remove: &store.Key{Kind: kind, Name: name}}
	if c.dryRun, ok = flag(w, r, "dryRun"); !ok {
		return
	}
	if c.force, ok = flag(w, r, "force"); !ok {
		return
	}
	s.change(w, r, c, func(v store.View, next *config.Objects) (*config.Objects, error) {
		if !next.Delete(kind, name) && len(v.Faults) == 0 { // what has a fault may be in the store alone
			return nil, &notFound{strings.TrimSuffix(kind, "s"), name, v.Objects.Names(kind)}
		}
		return next, nil
	})
}

// kindOf reads the kind of the path, singular or plural.
func kindOf(w http.ResponseWriter, r *http.Request) (kind string, ok bool) {
	asked := strings.ToLower(r.PathValue("kind"))
	for _, kind := range config.Kinds {
		if asked == kind || asked+"s" == kind {
			return kind, true
		}
	}
	unknown(w, "kind", asked, config.Kinds)
	return "", false
}

// apply overlays the objects that are served with those of the body, all or none.
func (s *Server) apply(w http.ResponseWriter, r *http.Request) {
	b, ok := body(w, r, api.MaxApply)
	if !ok {
		return
	}
	c := edit{author: r.URL.Query().Get("author")}
	for _, f := range []struct {
		name string
		on   *bool
	}{{"dryRun", &c.dryRun}, {"force", &c.force}, {"prune", &c.prune}} {
		if *f.on, ok = flag(w, r, f.name); !ok {
			return
		}
	}
	if at := r.URL.Query().Get("at"); at != "" {
		n, err := strconv.ParseInt(at, 10, 64)
		if err != nil || n < 0 {
			fail(w, http.StatusBadRequest, fmt.Sprintf("at=%q", at), "give a revision of the store, from objects")
			return
		}
		c.at = n
	}
	given, err := config.ParseObjects(api.Body, b)
	if err == nil {
		err = noFiles(given)
	}
	if err != nil {
		s.refuse(w, err)
		return
	}
	c.given = given
	s.change(w, r, c, func(v store.View, next *config.Objects) (*config.Objects, error) {
		keepStamps(given.States, v.Objects.States)
		if c.prune {
			given.States = next.States
			return given, nil
		}
		return config.Merge(next, given), nil
	})
}

// keepStamps gives states that leave out who set them since when what present says of the same
// state: left out, that is no difference.
func keepStamps(given, present map[string]config.State) {
	for name, st := range given {
		was, ok := present[name]
		if !ok {
			continue
		}
		if st.Author == "" {
			st.Author = was.Author
		}
		if st.Since.IsZero() {
			st.Since = was.Since
		}
		if config.Equal(st, was) {
			given[name] = st
		}
	}
}

// noFiles refuses zones that name a file: it would be one of this node, not of the caller.
func noFiles(o *config.Objects) error {
	var errs []error
	for name, z := range o.Zones {
		if z.File != "" {
			errs = append(errs, config.Fault{File: api.Body, Path: "zones." + name + ".file", Msg: "a file of the caller; expected its text in records"})
		}
	}
	return errors.Join(errs...)
}

// drain takes a pool or an endpoint out of new answers.
func (s *Server) drain(w http.ResponseWriter, r *http.Request) {
	var req api.DrainRequest
	if !decode(w, r, &req) {
		return
	}
	if p := checkText("reason", req.Reason); p != "" {
		fail(w, http.StatusBadRequest, p, "")
		return
	}
	now := s.o.Now()
	if !req.Until.IsZero() && !req.Until.After(now) {
		fail(w, http.StatusBadRequest, fmt.Sprintf("until %s is over", req.Until.Format(time.RFC3339)), "give a time to come, or none")
		return
	}
	pool := r.PathValue("pool")
	s.changePool(w, r, edit{author: req.Author, force: req.Force}, pool, req.Endpoint, func(next *config.Objects) error {
		name := config.StateName(pool, req.Endpoint)
		if err := notForced(next, name); err != nil {
			return err
		}
		return next.Put("states", name, config.State{
			Pool:     pool,
			Endpoint: req.Endpoint,
			State:    stateDrain,
			Author:   req.Author,
			Reason:   req.Reason,
			Since:    now.UTC().Truncate(time.Second),
			Until:    req.Until.UTC(),
		})
	})
}

// undrain takes a drain back. What is not drained stays as it is.
func (s *Server) undrain(w http.ResponseWriter, r *http.Request) {
	var req api.DrainRequest
	if !decode(w, r, &req) {
		return
	}
	pool := r.PathValue("pool")
	s.changePool(w, r, edit{author: req.Author, force: req.Force}, pool, req.Endpoint, func(next *config.Objects) error {
		name := config.StateName(pool, req.Endpoint)
		if err := notForced(next, name); err != nil {
			return err
		}
		next.Delete("states", name)
		return nil
	})
}

// notForced refuses to replace or remove a state that is not a drain.
func notForced(o *config.Objects, name string) error {
	st, ok := o.States[name]
	if !ok || st.State == stateDrain {
		return nil
	}
	return &refusal{http.StatusConflict, fmt.Sprintf("%s is forced %s by %s", name, st.State, st.Author), "to take that back: gslbctl delete state " + name}
}

// weight sets the weight of a pool in one service, or in each that names it.
func (s *Server) weight(w http.ResponseWriter, r *http.Request) {
	req := api.WeightRequest{Weight: -1}
	if !decode(w, r, &req) {
		return
	}
	if req.Weight < 0 || req.Weight > 65535 {
		fail(w, http.StatusBadRequest, fmt.Sprintf("weight %d", req.Weight), "give 0..65535; 0 is never")
		return
	}
	pool := r.PathValue("pool")
	s.changePool(w, r, edit{author: req.Author, force: req.Force}, pool, netip.Addr{}, func(next *config.Objects) error {
		return setWeight(next, pool, config.CanonicalName(req.Service), req.Weight)
	})
}

// setWeight changes the services of o: the named one, or each that names pool.
func setWeight(o *config.Objects, pool, service string, weight int) error {
	names := o.Names("services")
	if service != "" {
		if _, ok := o.Services[service]; !ok {
			return &notFound{"service", service, names}
		}
		names = []string{service}
	}
	found := false
	for _, name := range names {
		svc := o.Services[name]
		ref, ok := svc.Pools[pool]
		if !ok {
			continue
		}
		found = true
		pools := make(map[string]config.PoolRef, len(svc.Pools)) // the map of a served object is not ours
		for k, v := range svc.Pools {
			pools[k] = v
		}
		ref.Weight = &weight
		pools[pool] = ref
		svc.Pools = pools
		if err := o.Put("services", name, svc); err != nil {
			return err
		}
	}
	if !found {
		problem := "no service names pool " + pool
		if service != "" {
			problem = fmt.Sprintf("service %s does not name pool %s", service, pool)
		}
		return &refusal{http.StatusConflict, problem, "a weight belongs to a pool in a service"}
	}
	return nil
}

// edit says who changes objects, and how.
type edit struct {
	author        string
	dryRun, force bool
	prune         bool // what is not given is deleted
	at            int64
	remove        *store.Key      // to be gone from the store, also where it is not served; nil: none
	given         *config.Objects // to be in the store after, also where the node's file says the same; nil: none
}

// present returns the objects that e is compared with: those that are served; of those that e
// gives, what etcd holds, so that e moves them from the node's file into the store, and writes
// over what is not valid there.
func (e edit) present(v store.View) *config.Objects {
	if e.given == nil || v.Stored == nil {
		return v.Objects
	}
	p := v.Objects.Clone()
	for _, kind := range config.Kinds {
		for _, name := range e.given.Names(kind) {
			if !p.Take(v.Stored, kind, name) {
				p.Delete(kind, name)
			}
		}
		if !e.prune || kind == "states" {
			continue
		}
		for _, name := range v.Stored.Names(kind) {
			p.Take(v.Stored, kind, name)
		}
	}
	return p
}

// changePool is change for one pool or endpoint, which must exist. do may change next's
// tables.
func (s *Server) changePool(w http.ResponseWriter, r *http.Request, e edit, pool string, endpoint netip.Addr, do func(next *config.Objects) error) {
	s.change(w, r, e, func(v store.View, next *config.Objects) (*config.Objects, error) {
		p, ok := v.Objects.Pools[pool]
		if !ok {
			return nil, &notFound{"pool", pool, v.Objects.Names("pools")}
		}
		if endpoint.IsValid() && !slices.ContainsFunc(p.Endpoints, func(e config.Endpoint) bool { return e.Address == endpoint }) {
			var known []string
			for _, e := range p.Endpoints {
				known = append(known, e.Address.String())
			}
			return nil, &notFound{"endpoint of " + pool, endpoint.String(), known}
		}
		return next, do(next)
	})
}

// refusal is a change that is not made, with the HTTP status that says so.
type refusal struct {
	status        int
	problem, hint string
}

// Error returns the problem.
func (e *refusal) Error() string { return e.problem }

// notFound is a change of what is not there.
type notFound struct {
	kind, name string
	known      []string
}

// Error names it.
func (e *notFound) Error() string { return fmt.Sprintf("no %s %q", e.kind, e.name) }

// change computes the next objects, compares them with the present ones and writes the
// difference in one transaction, guarded by the revision that they were read at.
func (s *Server) change(w http.ResponseWriter, r *http.Request, e edit, do func(v store.View, next *config.Objects) (*config.Objects, error)) {
	v, ok := s.view(w)
	if !ok {
		return
	}
	if e.author == "" && !e.dryRun {
		fail(w, http.StatusBadRequest, "author is missing", "say who changes it: author=ann")
		return
	}
	if p := checkText("author", e.author); p != "" {
		fail(w, http.StatusBadRequest, p, "")
		return
	}
	next, err := do(v, v.Objects.Clone())
	if err == nil {
		err = config.Validate(next)
	}
	if err == nil && s.o.Check != nil {
		if wrong := s.o.Check(v.Objects, next); wrong != nil {
			err = &refusal{http.StatusUnprocessableEntity, wrong.Error(), "nothing was written"}
		}
	}
	if err != nil {
		s.refuse(w, err)
		return
	}
	out := api.Applied{Revision: v.Revision, DryRun: e.dryRun, Diff: config.Diff(e.present(v), next)}
	if k := e.remove; k != nil && len(out.Diff) == 0 {
		d := config.Change{Kind: k.Kind, Name: k.Name, Op: config.OpDelete}
		if v.Stored != nil {
			d.Before, _ = v.Stored.Object(k.Kind, k.Name)
		}
		out.Diff = append(out.Diff, d)
	}
	if out.Diff == nil {
		out.Diff = []config.Change{}
	}
	if e.dryRun && !e.force {
		out.Refused = refusedWithoutForce(v.Objects, next)
	}
	if e.dryRun || len(out.Diff) == 0 {
		reply(w, out)
		return
	}
	if s.o.Store == nil {
		fail(w, http.StatusConflict, "this node has no store: change the file", fileOnly)
		return
	}
	c := store.Change{Put: &config.Objects{}, Author: e.author, At: v.Revision, Force: e.force}
	if e.at != 0 {
		c.At = e.at
	}
	for _, d := range out.Diff {
		if d.Op == config.OpDelete {
			c.Delete = append(c.Delete, store.Key{Kind: d.Kind, Name: d.Name})
		} else if err := c.Put.Put(d.Kind, d.Name, d.After); err != nil {
			s.refuse(w, err)
			return
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), applyTimeout)
	defer cancel()
	if out.Revision, err = s.o.Store.Apply(ctx, c); err != nil {
		s.refuse(w, err)
		return
	}
	s.o.Log.Info("objects changed", "author", e.author, "changes", len(out.Diff), "revision", out.Revision, "path", r.URL.Path, "from", r.RemoteAddr)
	reply(w, out)
}

// refusedWithoutForce says why such a change takes force; "" is that it does not.
func refusedWithoutForce(before, after *config.Objects) string {
	if err := store.Guard(before, after); err != nil {
		return err.Error()
	}
	return ""
}

// refuse answers a change that was not made.
func (s *Server) refuse(w http.ResponseWriter, err error) {
	if e, ok := errors.AsType[*notFound](err); ok {
		unknown(w, e.kind, e.name, e.known)
		return
	}
	if e, ok := errors.AsType[*refusal](err); ok {
		fail(w, e.status, e.problem, e.hint)
		return
	}
	if faults := config.Faults(err); len(faults) > 0 {
		p := api.Problem{Error: "the configuration has a fault", Hint: "nothing was written"}
		if len(faults) > 1 {
			p.Error = fmt.Sprintf("the configuration has %d faults", len(faults))
		}
		for _, f := range faults {
			p.Faults = append(p.Faults, f.Error())
		}
		failWith(w, http.StatusUnprocessableEntity, p)
		return
	}
	status, hint := http.StatusServiceUnavailable, "see gslbctl status for the store"
	switch {
	case errors.Is(err, store.ErrConflict):
		status, hint = http.StatusConflict, "look at the difference again, then apply again"
	case errors.Is(err, store.ErrGuard):
		status, hint = http.StatusConflict, "if that is meant, say so: --force, or force=1"
	case errors.Is(err, store.ErrHeld):
		status, hint = http.StatusConflict, "see gslbctl status for why; gslbctl confirm takes what etcd holds"
	case errors.Is(err, store.ErrReadOnly):
		status, hint = http.StatusConflict, fileOnly
	case errors.Is(err, store.ErrNotFound):
		status, hint = http.StatusNotFound, "look at the difference again, then apply again"
	case errors.Is(err, context.DeadlineExceeded):
		status, hint = http.StatusGatewayTimeout, "it may have been written all the same: look before you try again"
	}
	if status >= http.StatusInternalServerError {
		s.o.Log.Warn("change not written", "error", err)
	}
	fail(w, status, err.Error(), hint)
}

// fileOnly says what to do on a node whose objects are in a file.
const fileOnly = "the file is read again at once when it changes; or give the node a store (node.etcd)"

// confirm takes what etcd holds although it went back or is another cluster.
func (s *Server) confirm(w http.ResponseWriter, r *http.Request) {
	st, ok := s.o.Store.(interface{ Confirm() })
	held := s.o.Store != nil && s.o.Store.Status().Held != ""
	if !ok || !held {
		fail(w, http.StatusConflict, "nothing waits for a confirmation", "")
		return
	}
	st.Confirm()
	s.o.Log.Warn("store confirmed", "from", r.RemoteAddr)
	w.WriteHeader(http.StatusNoContent)
}

// checkText says what is wrong with a text for the history, or nothing.
func checkText(what, text string) string {
	switch {
	case len(text) > maxText:
		return fmt.Sprintf("%s of %d octets: expected up to %d", what, len(text), maxText)
	case strings.ContainsFunc(text, unicode.IsControl):
		return fmt.Sprintf("%s %q: expected one line of text", what, text)
	}
	return ""
}
