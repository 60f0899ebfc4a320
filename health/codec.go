package health

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/meridian-gslb/meridian/gslb"
)

// The gossip format, version 2. Integers are unsigned varints, strings an octet of length
// and UTF-8, times ages: a receiver takes them off its own clock, so that no two clocks are
// compared.
//
//	message     = version kind ( report / bits / part )   ; kind 1 is a report, 2 a bitmap: see bitmap.go, 3 a part of a note: see note.go
//	report      = heading *observation
//	heading     = flags node site info epoch seq age-ms period-ms failing list
//	observation = flags [ pool ] address class score behind age-ms latency-us [ detail ]
//
// An observation without a pool is of the same pool as the one before it, and its version is
// behind the report's seq by so many. Bits of flags that are not named here are 0. Whoever changes this raises the version: messages of
// another are dropped and counted, never guessed at.
const (
	wireVersion = 2

	kindReport = 1
	kindBits   = 2
	kindPart   = 3

	flagLeaving  = 1 << 0 // of a report
	flagAbstains = 1 << 1
	flagBlind    = 1 << 2

	flagUp       = 1 << 0 // of an observation
	flagFlipping = 1 << 1
	flagV6       = 1 << 2 // the address has 16 octets, not 4
	flagPool     = 1 << 3
	flagDetail   = 1 << 4
	flagsKnown   = 1<<5 - 1
)

// Bounds of the format. A string over its bound is cut; a pool's name over 255 octets is
// not gossiped. Decoding refuses what is over them.
const (
	maxName    = 128
	maxSite    = 128
	maxInfo    = 128
	maxDetail  = 96
	maxPacket  = 1024     // octets of a message in one packet
	maxMessage = 64 << 10 // octets of a message that is read
	maxState   = 8 << 20  // octets of a bundle: all that a node knows
	maxAge     = 30 * 24 * time.Hour
	maxPeriod  = time.Minute
	maxEpoch   = 1 << 62
)

var (
	errVersion   = errors.New("unknown version")
	errOversize  = errors.New("over its bound")
	errTruncated = errors.New("ends early")
)

// appendReport encodes r's heading at now and as many of its observations as fit in limit
// octets with what b holds, at least one if there are any. It returns those that are left.
func appendReport(b []byte, r *Report, obs []Observation, now time.Time, limit int) ([]byte, []Observation) {
	h := &r.Heading
	b = appendHeading(b, r, now)
	pool, wrote := "", false
	for i, o := range obs {
		if len(o.ID.Pool) > 255 || !o.ID.Addr.IsValid() || o.ID.Addr.Zone() != "" || o.Silent || o.Version.Epoch != h.Version.Epoch {
			continue
		}
		mark := len(b)
		b = appendObservation(b, &o, !wrote || o.ID.Pool != pool, h.Version.Seq, now)
		if wrote && len(b) > limit {
			return b[:mark], obs[i:]
		}
		pool, wrote = o.ID.Pool, true
	}
	return b, nil
}

// appendHeading encodes who says something, of a report or of a bitmap.
func appendHeading(b []byte, r *Report, now time.Time) []byte {
	h := &r.Heading
	flags := byte(0)
	for bit, on := range map[byte]bool{flagLeaving: h.Leaving, flagAbstains: h.Abstains, flagBlind: h.Blind} {
		if on {
			flags |= bit
		}
	}
	b = append(b, flags)
	b = appendString(b, r.Node, maxName)
	b = appendString(b, h.Site, maxSite)
	b = appendString(b, h.Info, maxInfo)
	b = binary.AppendUvarint(b, h.Version.Epoch)
	b = binary.AppendUvarint(b, h.Version.Seq)
	b = appendDuration(b, now.Sub(h.At), time.Millisecond, maxAge)
	b = appendDuration(b, h.Period, time.Millisecond, maxPeriod)
	b = append(b, h.Failing)
	b = binary.BigEndian.AppendUint64(b, h.List)
	return b
}

func appendObservation(b []byte, o *Observation, withPool bool, seq uint64, now time.Time) []byte {
	flags := byte(0)
	set := func(f byte, on bool) {
		if on {
			flags |= f
		}
	}
	detail := clip(o.Detail, maxDetail)
	set(flagUp, o.Up)
	set(flagFlipping, o.Flipping)
	set(flagV6, o.ID.Addr.Is6())
	set(flagPool, withPool)
	set(flagDetail, detail != "")
	b = append(b, flags)
	if withPool {
		b = appendString(b, o.ID.Pool, 255)
	}
	b = append(b, o.ID.Addr.AsSlice()...)
	b = append(b, byte(o.Class), o.Score)
	b = binary.AppendUvarint(b, seq-o.Version.Seq)
	b = appendDuration(b, now.Sub(o.At), time.Millisecond, maxAge)
	b = appendDuration(b, o.Latency, time.Microsecond, time.Hour)
	if detail != "" {
		b = appendString(b, detail, maxDetail)
	}
	return b
}

// encodeReport returns r in messages of about limit octets each, at least one. Each carries
// the heading and stands alone.
func encodeReport(r *Report, now time.Time, limit int) [][]byte {
	var messages [][]byte
	for obs := r.Observations; ; {
		b := append(make([]byte, 0, min(limit, maxMessage)), wireVersion, kindReport)
		b, obs = appendReport(b, r, obs, now, limit)
		messages = append(messages, b)
		if len(obs) == 0 {
			return messages
		}
	}
}

// decodeMessage returns the report of a message that arrived at now. The marks of a bitmap share b.
// With an error nothing of the message is to be used.
func decodeMessage(b []byte, now time.Time) (Report, error) {
	if len(b) < 2 {
		return Report{}, errTruncated
	}
	switch {
	case b[0] != wireVersion:
		return Report{}, fmt.Errorf("version %d: %w", b[0], errVersion)
	case b[1] < kindReport || b[1] > kindPart:
		return Report{}, fmt.Errorf("kind %d: %w", b[1], errVersion)
	case len(b) > maxMessage:
		return Report{}, fmt.Errorf("message of %d octets: %w", len(b), errOversize)
	}
	d := decoder{b: b[2:]}
	r, err := decodeHeading(&d, now)
	if err != nil {
		return Report{}, err
	}
	switch b[1] {
	case kindBits:
		r.Bits, err = decodeBits(&d)
	case kindPart:
		r.Part, err = decodePart(&d, now)
	default:
		return decodeObservations(&d, r, now)
	}
	if err != nil {
		return Report{}, err
	}
	return r, nil
}

func decodeHeading(d *decoder, now time.Time) (Report, error) {
	var r Report
	h := &r.Heading
	flags := d.byte()
	if flags&^(flagLeaving|flagAbstains|flagBlind) != 0 {
		return Report{}, fmt.Errorf("report with flags %#x", flags)
	}
	h.Leaving, h.Abstains, h.Blind = flags&flagLeaving != 0, flags&flagAbstains != 0, flags&flagBlind != 0
	r.Node, h.Site, h.Info = d.string(maxName), d.string(maxSite), d.string(maxInfo)
	h.Version = Version{Epoch: d.uint(maxEpoch), Seq: d.uint(maxEpoch)}
	h.At = now.Add(-d.duration(time.Millisecond, maxAge))
	h.Period = d.duration(time.Millisecond, maxPeriod)
	if h.Failing = d.byte(); h.Failing > 100 {
		return Report{}, fmt.Errorf("failing %d percent", h.Failing)
	}
	if list := d.take(8); list != nil {
		h.List = binary.BigEndian.Uint64(list)
	}
	if d.err == nil && r.Node == "" {
		return Report{}, errors.New("report without a node")
	}
	return r, d.err
}

func decodeObservations(d *decoder, r Report, now time.Time) (Report, error) {
	h := &r.Heading
	for pool := ""; d.err == nil && len(d.b) > 0; {
		o := Observation{Version: h.Version, Told: h.Version}
		flags := d.byte()
		if flags&^flagsKnown != 0 || pool == "" && flags&flagPool == 0 {
			return Report{}, fmt.Errorf("observation with flags %#x", flags)
		}
		o.Up, o.Flipping = flags&flagUp != 0, flags&flagFlipping != 0
		if flags&flagPool != 0 {
			if pool = d.string(255); pool == "" && d.err == nil {
				return Report{}, errors.New("observation without a pool")
			}
		}
		size := uint64(4)
		if flags&flagV6 != 0 {
			size = 16
		}
		addr, _ := netip.AddrFromSlice(d.take(size))
		o.ID = gslb.EndpointID{Pool: pool, Addr: addr}
		if o.Class = Class(d.byte()); o.Class >= numClasses {
			return Report{}, fmt.Errorf("observation with %v", o.Class)
		}
		if o.Score = d.byte(); o.Score > 100 {
			return Report{}, fmt.Errorf("score %d", o.Score)
		}
		o.Version.Seq -= d.uint(h.Version.Seq)
		o.Told = o.Version
		o.At = now.Add(-d.duration(time.Millisecond, maxAge))
		o.Latency = d.duration(time.Microsecond, time.Hour)
		if flags&flagDetail != 0 {
			o.Detail = printable(d.string(maxDetail), maxDetail)
		}
		r.Observations = append(r.Observations, o)
	}
	if d.err != nil {
		return Report{}, d.err
	}
	return r, nil
}

// decoder reads from b, and nothing more once it has an error.
type decoder struct {
	b   []byte
	err error
}

// take returns the next n octets, which stay b's; nil if there are fewer.
func (d *decoder) take(n uint64) []byte {
	if d.err == nil && n > uint64(len(d.b)) {
		d.err = errTruncated
	}
	if d.err != nil {
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) byte() byte {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

// uint returns the next integer, which must not be over bound.
func (d *decoder) uint(bound uint64) uint64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Uvarint(d.b)
	switch {
	case n == 0:
		d.err = errTruncated
	case n < 0 || v > bound:
		d.err = fmt.Errorf("integer: %w", errOversize)
	default:
		d.b = d.b[n:]
		return v
	}
	return 0
}

func (d *decoder) string(bound byte) string {
	n := d.byte()
	if n > bound {
		d.err = fmt.Errorf("string of %d octets: %w", n, errOversize)
	}
	s := d.take(uint64(n))
	if !utf8.Valid(s) {
		d.err = errors.New("string that is not UTF-8")
		return ""
	}
	return string(s)
}

func (d *decoder) duration(unit, bound time.Duration) time.Duration {
	return time.Duration(d.uint(uint64(bound/unit))) * unit
}

func appendString(b []byte, s string, bound int) []byte {
	s = clip(s, bound)
	return append(append(b, byte(len(s))), s...)
}

func appendDuration(b []byte, d, unit, bound time.Duration) []byte {
	return binary.AppendUvarint(b, uint64(min(max(d, 0), bound)/unit))
}

// clip cuts s to at most n octets of whole runes, and takes out what is not UTF-8.
func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "")
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// printable returns s, which others wrote, fit for a terminal and cut to n octets.
func printable(s string, n int) string {
	return clip(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s), n)
}
