package dns

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/dchest/siphash"
)

// Sizes of RFC 7873, section 4, and RFC 9018, section 4, in octets.
const (
	clientCookieLen = 8
	serverCookieLen = 16
	cookieLen       = clientCookieLen + serverCookieLen
	cookieSecretLen = 16
)

// How long a server cookie is good, and how far ahead of our clock its maker's may be, in
// seconds (RFC 9018, section 4.3). One that is older than cookieRenew is replaced in the reply.
const (
	cookieAge   = 3600
	cookieAhead = 300
	cookieRenew = 1800
)

// cookieKeys make and check server cookies in the interoperable form of RFC 9018, so that every
// server of an anycast fleet with the same secrets knows the cookies of the others.
type cookieKeys struct {
	keys [][2]uint64 // the first makes cookies, all check them; at least one
}

// newCookieKeys returns the keys of these secrets, or of a random one if there are none.
func newCookieKeys(secrets [][]byte) (*cookieKeys, error) {
	if len(secrets) == 0 {
		secret := make([]byte, cookieSecretLen)
		_, _ = rand.Read(secret) // never fails
		secrets = [][]byte{secret}
	}
	k := new(cookieKeys)
	for i, secret := range secrets {
		if len(secret) != cookieSecretLen {
			return nil, fmt.Errorf("cookie secret %d: %d octets, expected %d", i+1, len(secret), cookieSecretLen)
		}
		k.keys = append(k.keys, [2]uint64{binary.LittleEndian.Uint64(secret), binary.LittleEndian.Uint64(secret[8:])})
	}
	return k, nil
}

// hash returns the hash of a server cookie: SipHash-2-4 over client cookie, version, reserved
// octets, timestamp and the client's address.
func (k *cookieKeys) hash(key [2]uint64, client, head []byte, from netip.Addr) uint64 {
	var b [clientCookieLen + 8 + 16]byte
	n := copy(b[:], client[:clientCookieLen])
	n += copy(b[n:], head[:8])
	if from.Is4() {
		addr := from.As4()
		n += copy(b[n:], addr[:])
	} else {
		addr := from.As16()
		n += copy(b[n:], addr[:])
	}
	return siphash.Hash(key[0], key[1], b[:n])
}

// valid tells whether cookie, the data of a COOKIE option, has a server cookie that one of the
// keys made for that client, and that is neither old nor of the future.
func (k *cookieKeys) valid(cookie []byte, from netip.Addr, now uint32) bool {
	if len(cookie) != cookieLen || cookie[8] != 1 {
		return false
	}
	if age := int32(now - binary.BigEndian.Uint32(cookie[12:])); age > cookieAge || age < -cookieAhead { // serial arithmetic: RFC 1982
		return false
	}
	sum := binary.LittleEndian.Uint64(cookie[16:])
	for _, key := range k.keys {
		if k.hash(key, cookie, cookie[8:], from) == sum {
			return true
		}
	}
	return false
}

// append appends the cookie to answer with: the one asked with while it is young and of the
// first key, else a new one.
func (k *cookieKeys) append(b, asked []byte, from netip.Addr, now uint32) []byte {
	if len(asked) == cookieLen && now-binary.BigEndian.Uint32(asked[12:]) < cookieRenew && asked[8] == 1 &&
		k.hash(k.keys[0], asked, asked[8:], from) == binary.LittleEndian.Uint64(asked[16:]) {
		return append(b, asked...)
	}
	b = append(b, asked[:clientCookieLen]...)
	b = append(b, 1, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, now)
	return binary.LittleEndian.AppendUint64(b, k.hash(k.keys[0], asked, b[len(b)-8:], from))
}
