package gslb

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// poolStates are what operators set on a pool and its endpoints, by address; the zero Addr
// is the whole pool.
type poolStates map[netip.Addr]targetStates

func (s poolStates) whole() targetStates { return s[netip.Addr{}] }

// targetStates are what operators set on one pool or endpoint.
type targetStates struct {
	drain *config.State
	force *config.State // up or down
}

// states returns the states that hold now by pool, and notes when they end. There is one
// for a target at most (config.Validate).
func (b *builder) states() map[string]poolStates {
	out := make(map[string]poolStates)
	b.ends = make(map[string]time.Time)
	for _, name := range slices.Sorted(maps.Keys(b.in.Objects.States)) {
		st := b.in.Objects.States[name]
		if !st.Until.IsZero() {
			if !st.Until.After(b.in.Now) {
				continue
			}
			b.due(st.Until)
			if end, ok := b.ends[st.Pool]; !ok || st.Until.Before(end) {
				b.ends[st.Pool] = st.Until
			}
		}
		if out[st.Pool] == nil {
			out[st.Pool] = make(poolStates)
		}
		t := out[st.Pool][st.Endpoint]
		switch st.State {
		case "drain":
			t.drain = &st
		case "down", "up":
			t.force = &st
		default:
			b.fail("state %s: state %q: expected drain, down or up", name, st.State)
		}
		out[st.Pool][st.Endpoint] = t
	}
	return out
}

// poolNotes say what is the matter with a pool, for people.
type poolNotes struct {
	state  string // what operators set: "drained by ann: upgrade, until 14:00Z"
	health string // "1 of 2 endpoints healthy"
}

// annotate fills p.notes.
func (p *Pool) annotate(own poolStates, now time.Time) {
	var states []string
	add := func(what string, t targetStates) {
		if t.drain != nil {
			states = append(states, what+stateNote("drained", t.drain, now))
		}
		if t.force != nil {
			states = append(states, what+stateNote("forced "+t.force.State, t.force, now))
		}
	}
	add("", own.whole())
	healthy, counted := 0, 0
	for _, e := range p.Endpoints {
		add(e.Addr.String()+" ", own[e.Addr])
		if e.Weight > 0 {
			counted++
			if e.Verdict != Down {
				healthy++
			}
		}
	}
	p.notes.state = strings.Join(states, "; ")
	p.notes.health = fmt.Sprintf("%d of %d endpoints healthy", healthy, counted)
	if p.Degraded && !p.down {
		p.notes.health += fmt.Sprintf(", degraded: %.0f %% of its weight usable", 100*p.Healthy)
	}
}

// stateNote says who set a state, why, and until when.
func stateNote(what string, st *config.State, now time.Time) string {
	s := what
	if st.Author != "" {
		s += " by " + st.Author
	}
	if st.Reason != "" {
		s += ": " + st.Reason
	}
	if !st.Until.IsZero() {
		layout := "2006-01-02 15:04Z"
		if st.Until.Sub(now) < 24*time.Hour {
			layout = "15:04Z"
		}
		s += ", until " + st.Until.UTC().Format(layout)
	}
	return s
}
