package health

import (
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"time"
)

// What travels, version 2. Every message of a node is signed by it alone and passed on by
// others as it is, so that who holds the gossip key can repeat another node's word but not
// change it. The age that those on the way add is not signed: a word only looks older by it.
//
//	packet   = envelope / bundle / digest
//	envelope = %x02 age-ms signature message        ; signature is 64 octets, zero without a key
//	bundle   = %x42 *( length ( envelope / digest ) )
//	digest   = %x43 node *( node epoch seq age-ms )  ; what the first node has of the others
const (
	wireEnvelope = 2
	wireBundle   = 0x42
	wireDigest   = 0x43

	signatureLabel = "meridian observation\x00" // keeps the key's other signatures apart
)

// envelope is a message with its signature.
type envelope struct {
	age       time.Duration // since it was written, as far as those on the way know
	signature []byte
	message   []byte
}

// seal signs message; a nil key leaves the signature zero.
func seal(key ed25519.PrivateKey, message []byte) envelope {
	e := envelope{signature: make([]byte, ed25519.SignatureSize), message: message}
	if key != nil {
		e.signature = ed25519.Sign(key, append([]byte(signatureLabel), message...))
	}
	return e
}

// signedBy reports whether the key's owner wrote e.
func (e *envelope) signedBy(key ed25519.PublicKey) bool {
	return ed25519.Verify(key, append([]byte(signatureLabel), e.message...), e.signature)
}

// append encodes e.
func (e *envelope) append(b []byte) []byte {
	b = append(b, wireEnvelope)
	b = appendDuration(b, e.age, time.Millisecond, maxAge)
	b = append(b, e.signature...)
	return append(b, e.message...)
}

// openEnvelope decodes what append encodes. It shares b.
func openEnvelope(b []byte) (envelope, error) {
	d := decoder{b: b}
	if v := d.byte(); d.err == nil && v != wireEnvelope {
		return envelope{}, fmt.Errorf("version %d: %w", v, errVersion)
	}
	e := envelope{age: d.duration(time.Millisecond, maxAge), signature: d.take(ed25519.SignatureSize)}
	e.message = d.b
	if d.err == nil && len(e.message) > maxMessage {
		d.err = fmt.Errorf("message of %d octets: %w", len(e.message), errOversize)
	}
	return e, d.err
}

// appendBundle appends one packet to a bundle, if it fits in limit octets.
func appendBundle(b, packet []byte, limit int) ([]byte, bool) {
	if len(b) == 0 {
		b = append(b, wireBundle)
	}
	if len(b)+binary.MaxVarintLen32+len(packet) > limit {
		return b, false
	}
	b = binary.AppendUvarint(b, uint64(len(packet)))
	return append(b, packet...), true
}

// openBundle returns the packets of a bundle. They share b.
func openBundle(b []byte) ([][]byte, error) {
	if len(b) > maxState {
		return nil, fmt.Errorf("bundle of %d octets: %w", len(b), errOversize)
	}
	d := decoder{b: b}
	if v := d.byte(); d.err == nil && v != wireBundle {
		return nil, fmt.Errorf("version %d: %w", v, errVersion)
	}
	var out [][]byte
	for d.err == nil && len(d.b) > 0 {
		out = append(out, d.take(d.uint(maxState)))
	}
	return out, d.err
}

// known is what one node has of another.
type known struct {
	node    string
	version Version
	age     time.Duration
}

// appendDigest encodes what node has.
func appendDigest(b []byte, node string, all []known) []byte {
	b = appendString(append(b, wireDigest), node, maxName)
	for _, k := range all {
		b = appendString(b, k.node, maxName)
		b = binary.AppendUvarint(b, k.version.Epoch)
		b = binary.AppendUvarint(b, k.version.Seq)
		b = appendDuration(b, k.age, time.Millisecond, maxAge)
	}
	return b
}

// openDigest decodes what appendDigest encodes.
func openDigest(b []byte) (node string, all []known, err error) {
	d := decoder{b: b}
	if v := d.byte(); d.err == nil && v != wireDigest {
		return "", nil, fmt.Errorf("version %d: %w", v, errVersion)
	}
	node = d.string(maxName)
	for d.err == nil && len(d.b) > 0 {
		if len(all) == maxNodes {
			return "", nil, fmt.Errorf("digest of over %d nodes: %w", maxNodes, errOversize)
		}
		all = append(all, known{d.string(maxName), Version{d.uint(maxEpoch), d.uint(maxEpoch)}, d.duration(time.Millisecond, maxAge)})
	}
	return node, all, d.err
}
