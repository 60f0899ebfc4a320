package tracing

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// AnswerID names what a service's clients were answered with, and since when: a cohort, which
// is one service, pool, reason and plan, in one epoch. It says nothing of who asked, so that
// all who get the same answer get the same id, and answers stay cacheable. 0 is none.
//
//	epoch, 16 bits | cohort, 24 bits, never 0
type AnswerID uint64

const (
	cohortBits = 24
	idBits     = 16 + cohortBits
	macBits    = 64 - idBits // 24: one forged address in 16 million passes
)

func (id AnswerID) String() string { return fmt.Sprintf("%010x", uint64(id)) }

func (id AnswerID) epoch() uint16  { return uint16(id >> cohortBits) }
func (id AnswerID) cohort() uint32 { return uint32(id & (1<<cohortBits - 1)) }

// DefaultEpoch is how long an answer id lasts. It is how exactly the age of an answer is known,
// and how often an answer changes that otherwise would not.
const DefaultEpoch = time.Minute

// AnswerIDs writes answer ids into the last 64 bits of IPv6 addresses, and reads them there.
// Whoever shares the key derives the same ids, and the same trace and span id for each, so that
// nobody has to ask anybody. It is safe for concurrent use; each use in a hot path takes a
// Signer.
type AnswerIDs struct {
	length time.Duration
	keys   []cipher.Block // the first signs, all verify
}

// NewAnswerIDs returns ids of that epoch length, 1 s to 1 h in whole seconds, under keys of 16,
// 24 or 32 octets each. The first key signs; the others are still believed, so that a key can be
// changed without a moment in which nothing is.
func NewAnswerIDs(epoch time.Duration, keys ...[]byte) (*AnswerIDs, error) {
	if epoch < time.Second || epoch > time.Hour || epoch%time.Second != 0 {
		return nil, fmt.Errorf("epoch %v: want whole seconds, 1s to 1h", epoch)
	}
	if len(keys) == 0 {
		return nil, errors.New("answer ids: want at least one key")
	}
	a := &AnswerIDs{length: epoch}
	for i, key := range keys {
		k, err := aes.NewCipher(key)
		if err != nil {
			return nil, fmt.Errorf("key %d of %d octets: want 16, 24 or 32", i+1, len(key))
		}
		a.keys = append(a.keys, k)
	}
	return a, nil
}

// Epoch returns the length of an epoch.
func (a *AnswerIDs) Epoch() time.Duration { return a.length }

// ID returns the id of a cohort at a moment. Names are taken as they are; ID does not allocate.
func (a *AnswerIDs) ID(at time.Time, service, pool, plan string, reason uint8) AnswerID {
	// FNV-1a. It only has to spread: what nobody may forge is the address, not the cohort.
	h := uint64(14695981039346656037)
	for _, s := range [...]string{service, pool, plan} {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
		h *= 1099511628211 // of an octet 0: names do not run into one another
	}
	h = (h ^ uint64(reason)) * 1099511628211
	cohort := (h ^ h>>cohortBits ^ h>>(2*cohortBits)) & (1<<cohortBits - 1)
	return AnswerID(a.epochAt(at))<<cohortBits | AnswerID(max(cohort, 1))
}

func (a *AnswerIDs) epochAt(at time.Time) uint16 {
	return uint16(at.Unix() / int64(a.length/time.Second))
}

// since returns when the epoch of id began, taking it for the last one of that number that
// began before now: 65536 epochs, 45 days at the default length, are told apart. One that begins
// within maxSkew, or is the next, is of a node whose clock is ahead.
func (a *AnswerIDs) since(id AnswerID, now time.Time) time.Time {
	seconds := int64(a.length / time.Second)
	current := now.Unix() / seconds
	ago := int64(uint16(current) - id.epoch())
	if ahead := 1<<16 - ago; ahead <= max(1, int64(maxSkew/a.length)) {
		ago = -ahead
	}
	return time.Unix((current-ago)*seconds, 0)
}

// maxSkew is how far apart the clocks of a fleet are taken to be at most.
const maxSkew = 10 * time.Second

// Signer does the cryptography of AnswerIDs with memory of its own, so that it does not
// allocate. One goroutine at a time may use it.
type Signer struct {
	*AnswerIDs
	block [aes.BlockSize]byte
}

// Signer returns a new Signer.
func (a *AnswerIDs) Signer() *Signer { return &Signer{AnswerIDs: a} }

// What a block is for: no block of one use is a block of another.
const (
	forMAC   = 1
	forTrace = 2
	forSpan  = 3
)

// crypt encrypts the block (half, id, use) in place: a pseudo-random function of all three.
func (s *Signer) crypt(key cipher.Block, half uint64, id AnswerID, use byte) {
	binary.BigEndian.PutUint64(s.block[:], half)
	binary.BigEndian.PutUint64(s.block[8:], uint64(id)<<8|uint64(use)) // 40 + 8 bits: there is room
	key.Encrypt(s.block[:], s.block[:])
}

// Addr returns the address in addr's /64 that carries id: the id, and a MAC of it and of the
// /64, so that an id is good in the network only that it was given for.
func (s *Signer) Addr(id AnswerID, addr netip.Addr) netip.Addr {
	b := addr.As16()
	s.crypt(s.keys[0], binary.BigEndian.Uint64(b[:]), id, forMAC)
	mac := binary.BigEndian.Uint64(s.block[:]) >> (64 - macBits)
	binary.BigEndian.PutUint64(b[8:], uint64(id)<<macBits|mac)
	return netip.AddrFrom16(b)
}

// Authenticity is whether an address carries an answer id that can be believed.
type Authenticity uint8

// What an address can be.
const (
	Plain   Authenticity = iota // it does not claim to carry an id
	Genuine                     // it carries one of ours
	Forged                      // it claims to, but no key of ours made it
)

// Read returns the id that addr carries, and the index of the key that made it. An IPv4
// address, a loopback or link-local one and one whose suffix has no id, such as ::11, are Plain.
func (s *Signer) Read(addr netip.Addr) (id AnswerID, key int, v Authenticity) {
	if !addr.Is6() || addr.Is4In6() || addr.IsLoopback() || addr.IsLinkLocalUnicast() {
		return 0, 0, Plain
	}
	b := addr.As16()
	half, suffix := binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:])
	id = AnswerID(suffix >> macBits)
	if id == 0 {
		return 0, 0, Plain
	}
	for i, k := range s.keys {
		s.crypt(k, half, id, forMAC)
		if id.cohort() != 0 && binary.BigEndian.Uint64(s.block[:])>>(64-macBits) == suffix&(1<<macBits-1) {
			return id, i, Genuine
		}
	}
	return 0, 0, Forged
}

// Context returns the trace and span id of the span that tells of id, as every holder of the
// key derives them.
func (s *Signer) Context(id AnswerID, key int) (trace TraceID, span SpanID) {
	s.crypt(s.keys[key], 0, id, forTrace)
	copy(trace[:], s.block[:])
	s.crypt(s.keys[key], 0, id, forSpan)
	copy(span[:], s.block[:])
	if trace.IsZero() {
		trace[0] = 1
	}
	if span.IsZero() {
		span[0] = 1
	}
	return trace, span
}
