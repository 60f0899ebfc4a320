package admin

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"

	"github.com/meridian-gslb/meridian/admin/api"
	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// isSnapshot matches how a snapshot is named: by its revision, or by its ID.
var isSnapshot = regexp.MustCompile(`^([0-9]{1,20}|s[0-9a-f]{12})$`)

// supposed returns the snapshot that a request asks about: of the revision at, as it would be
// under every if. It has answered when there is none.
func (s *Server) supposed(w http.ResponseWriter, q url.Values) (*gslb.Snapshot, bool) {
	snap, ok := s.snapshot(w)
	if !ok {
		return nil, false
	}
	if at := q.Get("at"); at != "" && at != strconv.FormatUint(snap.Revision, 10) {
		if !isSnapshot.MatchString(at) {
			fail(w, http.StatusBadRequest, fmt.Sprintf("at=%q", at), "give the revision of a snapshot or its ID, as explain shows them")
			return nil, false
		}
		var past *gslb.Snapshot
		if s.o.At != nil {
			var err error
			if past, err = s.o.At(at); err != nil {
				fail(w, http.StatusInternalServerError, fmt.Sprintf("snapshot %s: %v", at, err), "")
				return nil, false
			}
		}
		if past == nil {
			fail(w, http.StatusNotFound, fmt.Sprintf("snapshot %s is not kept", at), fmt.Sprintf("the present one is revision %d; node.history says how many are kept, and for how long", snap.Revision))
			return nil, false
		}
		snap = past
	}
	if terms := q["if"]; len(terms) > 0 {
		next, err := snap.WhatIf(terms...)
		if err != nil {
			fail(w, http.StatusBadRequest, err.Error(), "give if=pool.gfe-eu=down, endpoint.POOL/ADDR=, site.NAME=, load.POOL=, weight.SERVICE/POOL=, capacity.SERVICE/POOL= or time=")
			return nil, false
		}
		snap = next
	}
	return snap, true
}

// plan answers what objects, or a state that is not, would change for the decisions that were
// made lately. Nothing is written.
func (s *Server) plan(w http.ResponseWriter, r *http.Request) {
	b, ok := body(w, r, api.MaxApply)
	if !ok {
		return
	}
	prune, ok := flag(w, r, "prune")
	if !ok {
		return
	}
	before, ok := s.snapshot(w)
	if !ok {
		return
	}
	after, ok := s.supposed(w, url.Values{"if": r.URL.Query()["if"]})
	if !ok {
		return
	}
	given, err := config.ParseObjects(api.Body, b)
	if err == nil {
		err = noFiles(given)
	}
	var next *config.Objects
	if err == nil && given.Len() > 0 {
		if next = config.Merge(after.Objects(), given); prune {
			given.States = after.Objects().States
			next = given
		}
		if err = config.Validate(next); err == nil {
			after, err = after.With(next)
		}
	}
	if err != nil {
		s.refuse(w, err)
		return
	}
	out := api.Plan{Revision: before.Revision, Diff: config.Diff(before.Objects(), after.Objects())}
	if next != nil {
		out.Refused = refusedWithoutForce(before.Objects(), next)
	}
	var samples []gslb.Sample
	if s.o.Recent != nil {
		samples = s.o.Recent()
	}
	out.Plan = *gslb.Compare(before, after, samples)
	for _, svc := range before.Services {
		if after.Service(svc.Name) == nil {
			out.Gone = append(out.Gone, svc.Name)
		}
	}
	slices.Sort(out.Gone)
	reply(w, out)
}
