package node

import (
	"math"
	"time"
)

// damper says of one pool which load its services are to shed by. Users who are handed on come
// away only as their answers expire, so that the load that is seen is that of what was kept some
// time ago: shed by that alone, a pool with a narrow stage is left by all and taken back by all,
// in turn. The demand does not swing: it is the load, over the share of the users who are still
// there. By it, the damper finds the load at which what is kept and the load that it leaves agree.
//
// It is pure: the time is an argument. The zero value is a pool that keeps all.
type damper struct {
	handed float64   // share of the users who hold an answer for another pool
	told   float64   // load that was told last
	keeps  float64   // share that is kept at it
	at     time.Time // when
}

// Bounds of what a damper believes.
const (
	fewest   = 0.05     // share of the users by which the demand is reckoned, at least: of none it is not known
	keepStep = 1.0 / 32 // by which the share that is kept must change to be told, where the load has not by loadStep
)

// settle returns the load to shed by, of a pool whose load is load: 1 for its capacity. keeps
// says which share of its users it keeps at a load, and does not grow with it. ttl is how long
// answers are good for.
func (d *damper) settle(load float64, keeps func(float64) float64, ttl time.Duration, now time.Time) float64 {
	if d.at.IsZero() {
		d.keeps = 1
	} else if since := now.Sub(d.at); since > 0 {
		d.handed += (1 - d.keeps - d.handed) * (1 - math.Exp(-since.Seconds()/max(ttl.Seconds(), 1)))
	}
	d.at = now
	next := agree(load/max(1-d.handed, fewest), keeps)
	if k := keeps(next); math.Abs(next-d.told) >= loadStep || math.Abs(k-d.keeps) >= keepStep || k != d.keeps && (k == 0 || k == 1) {
		d.told, d.keeps = next, k
	}
	return d.told
}

// agree returns the load at which keeps leaves that load of a demand.
func agree(demand float64, keeps func(float64) float64) float64 {
	lo, hi := 0.0, demand
	if demand*keeps(hi) >= hi {
		return demand
	}
	for range 40 {
		if at := (lo + hi) / 2; demand*keeps(at) > at {
			lo = at
		} else {
			hi = at
		}
	}
	return hi
}
