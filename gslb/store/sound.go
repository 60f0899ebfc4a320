package store

import (
	"slices"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// maxSoundTries bounds how often sound validates a whole: enough to find some dozens of
// faulty objects among ten thousand.
const maxSoundTries = 600

// sound returns next with as few objects as needed at their version in good (or left out, where
// good has none; or still there, where next has them no more), so that the whole over base is
// valid. held names those, in the order of config.Kinds; fault is what is wrong with next as it
// is, nil when it is valid and returned itself.
//
// Without a good that is valid over base there is nothing to stand on: out is nil.
func sound(base, good, next *config.Objects) (out *config.Objects, held []Key, fault error) {
	valid := func(o *config.Objects) error { return config.Validate(config.Merge(base, o)) }
	if fault = valid(next); fault == nil {
		return next, nil, nil
	}
	if good == nil || valid(good) != nil {
		return nil, nil, fault
	}

	// Take the changes onto good by halves: those that are valid together go at once, one that
	// is not valid alone stays out. What was refused may be valid once what it refers to is
	// there, so go on as long as some are taken.
	out = good
	tries := 0
	var take func(changes []config.Change) (left []config.Change)
	take = func(changes []config.Change) []config.Change {
		if len(changes) == 0 || tries == maxSoundTries {
			return changes
		}
		tries++
		try := out.Clone()
		for _, c := range changes {
			if c.Op == config.OpDelete {
				try.Delete(c.Kind, c.Name)
			} else {
				try.Take(next, c.Kind, c.Name)
			}
		}
		if valid(try) == nil {
			out = try
			return nil
		}
		if len(changes) == 1 {
			return changes
		}
		half := len(changes) / 2
		left := take(changes[:half])
		return append(slices.Clip(left), take(changes[half:])...)
	}
	left := referredFirst(config.Diff(good, next))
	for before := -1; len(left) != before && len(left) > 0; {
		before = len(left)
		left = take(left)
	}
	for _, c := range config.Diff(out, next) {
		held = append(held, Key{c.Kind, c.Name})
	}
	return out, held, fault
}

// referredFirst orders changes so that each is likely valid after those before it: what is
// added in the order of config.Kinds, then what is deleted in the opposite one.
func referredFirst(changes []config.Change) []config.Change {
	var puts, deletes []config.Change
	for _, c := range changes {
		if c.Op == config.OpDelete {
			deletes = append(deletes, c)
		} else {
			puts = append(puts, c)
		}
	}
	slices.Reverse(deletes)
	return append(puts, deletes...)
}
