package dns

import (
	"net/netip"
	"slices"
	"time"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/tracing"
)

// follower ties a query to the trace that it belongs to, and its answer to the requests that
// will come of it. The zero follower does neither.
type follower struct {
	parents *tracing.Parents // nil: TRACEPARENT is an option like any other that we do not know
	signer  *tracing.Signer  // nil: addresses are answered as they are

	// Of the query that is being answered.
	asked tracing.Request
	told  [tracing.TraceParentLen]byte // the option to answer with, if asked.Tell
	id    tracing.AnswerID             // of the answer; 0: none
	v6    [gslb.MaxAnswers]netip.Addr  // the addresses that carry it
}

// newFollower returns a follower for one answerer; both arguments may be nil.
func newFollower(parents *tracing.Parents, ids *tracing.AnswerIDs) follower {
	f := follower{parents: parents}
	if ids != nil {
		f.signer = ids.Signer()
	}
	return f
}

// reset forgets the last query.
func (f *follower) reset() { f.asked, f.id = tracing.Request{}, 0 }

// ask reads the trace context that the query came with.
func (f *follower) ask(q *query) {
	if q.edns.trace == nil || f.parents == nil {
		return
	}
	f.asked = f.parents.Read(q.from, q.edns.trace)
	if f.asked.Tell {
		q.told = tracing.AppendTraceParent(f.told[:0], f.asked.Trace, f.asked.Span)
	}
}

// identify gives the answer d its id, if its pool wants that, and returns addrs with it: the
// addresses of one /64 become one. IPv4 addresses stay as they are.
func (f *follower) identify(s *gslb.Snapshot, d *gslb.Decision, addrs []netip.Addr, at time.Time) []netip.Addr {
	if f.signer == nil || d.Pool == nil || !d.Pool.AnswerIDs {
		return addrs
	}
	f.id = f.signer.ID(at, d.Service.Name, d.Pool.Name, s.Plan, uint8(d.Reason))
	if len(addrs) == 0 || addrs[0].Is4() {
		return addrs
	}
	out := f.v6[:0]
	for _, addr := range addrs {
		if addr = f.signer.Addr(f.id, addr); !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}

// record writes what is known of the query's trace and of its answer's id into t.
func (f *follower) record(t *tracing.Query, r *reply) {
	if f.asked.Ask != tracing.AskNothing {
		f.asked.Record(t)
	}
	if f.id == 0 || r.n == 0 {
		return
	}
	t.Decision = f.id
	for _, addr := range r.sets[r.n-1].addrs { // what was decided is added last
		if addr.Is4() && int(t.GivenLen) < len(t.Given) {
			t.Given[t.GivenLen] = addr.As4()
			t.GivenLen++
		}
	}
}
