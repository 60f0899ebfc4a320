package health

import (
	"bytes"
	"crypto/ed25519"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func TestNoteRoundTrip(t *testing.T) {
	long := Report{Node: strings.Repeat("n", maxName), Heading: Heading{Site: strings.Repeat("s", maxSite), Info: strings.Repeat("i", maxInfo),
		Version: Version{maxEpoch, maxEpoch}, At: epoch, Period: maxPeriod}}
	for _, r := range []Report{sampleReport(0), long} {
		for _, size := range []int{1, 800, 5000, MaxNote} {
			note := make([]byte, size)
			for i := range note {
				note[i] = byte(i * 7)
			}
			messages := encodeNote(&r, note, epoch.Add(-time.Second), epoch, maxPacket)
			if len(messages) > maxNoteParts {
				t.Fatalf("%d octets in %d parts, want at most %d", size, len(messages), maxNoteParts)
			}
			rand.Shuffle(len(messages), func(i, j int) { messages[i], messages[j] = messages[j], messages[i] })
			var n notes
			for i, m := range messages {
				if len(m) > maxMessage {
					t.Errorf("a message of %d octets", len(m))
				}
				back, err := decodeMessage(m, epoch.Add(time.Minute))
				if err != nil || back.Part == nil || back.Node != r.Node {
					t.Fatalf("got %+v, %v", back, err)
				}
				if i > 0 && n.whole != nil {
					t.Fatal("whole before its last part came")
				}
				n.take(back.Heading.Version, back.Part)
				n.take(back.Heading.Version, back.Part) // again
			}
			if !bytes.Equal(n.whole, note) {
				t.Errorf("%d octets: got %d others", size, len(n.whole))
			}
			if want := epoch.Add(time.Minute - time.Second); !n.at.Equal(want) { // whatever the sender's clock says
				t.Errorf("written at %v, want %v", n.at, want)
			}
		}
	}
}

// TestNoteVersions wants the last whole note, whatever comes in between and whatever is
// repeated.
func TestNoteVersions(t *testing.T) {
	var n notes
	take := func(seq uint64, index, count int, data string) {
		n.take(Version{1, seq}, &Part{Index: index, Count: count, Data: []byte(data), At: epoch.Add(time.Duration(seq) * time.Second)})
	}
	want := func(what, whole string) {
		t.Helper()
		if string(n.whole) != whole {
			t.Errorf("%s: got %q, want %q", what, n.whole, whole)
		}
	}
	take(5, 1, 2, "B")
	want("a part", "")
	take(5, 0, 2, "A")
	want("all parts", "AB")
	take(6, 0, 2, "C")
	want("a part of the next", "AB")
	take(4, 0, 1, "old")
	want("an older one", "AB")
	take(6, 1, 3, "?")
	want("a part of another count", "AB")
	take(7, 0, 1, "D")
	want("the one after", "D")
	take(6, 1, 2, "C2")
	want("the rest of what was overtaken", "D")
	take(7, 0, 1, "forged by nobody: the same version again")
	want("the same again", "D")
	if !n.at.Equal(epoch.Add(7 * time.Second)) {
		t.Errorf("written at %v", n.at)
	}
}

// TestNotesTravel wants every node to hear the notes of the others over real sockets, and
// nobody who has no key to write one.
func TestNotesTravel(t *testing.T) {
	_, steady := listen(t)
	monitors, _ := fleet(t, 3, []Target{fastProbe(steady)})
	big := bytes.Repeat([]byte("load "), 1000) // over a packet
	if !monitors[0].SetNote(big) || !monitors[1].SetNote([]byte("small")) {
		t.Fatal("a note does not fit")
	}
	if monitors[2].SetNote(make([]byte, MaxNote+1)) {
		t.Error("a note over its bound was taken")
	}
	eventually(t, "notes are heard", func() bool {
		got := monitors[2].Notes()
		return len(got) == 2 && got[0].Node == "ns0" && bytes.Equal(got[0].Data, big) && got[1].Node == "ns1" && string(got[1].Data) == "small"
	})
	if got := monitors[0].Notes(); len(got) > 1 {
		t.Errorf("notes %v: want none of its own, and none of who has none", got)
	}
	monitors[1].SetNote([]byte("newer"))
	eventually(t, "the newer note is heard", func() bool {
		got := monitors[2].Notes()
		return len(got) == 2 && string(got[1].Data) == "newer"
	})
}

func TestNotesAreSigned(t *testing.T) {
	m := New(Options{Node: "ns0"})
	m.Configure(keyedPools("ns0", "ns1"))
	r := Report{Node: "ns1", Heading: Heading{Version: Version{1, 1}, At: time.Now()}}
	say := func(key ed25519.PrivateKey, note string) {
		r.Heading.Version.Seq++
		for _, msg := range encodeNote(&r, []byte(note), time.Now(), time.Now(), maxPacket) {
			e := seal(key, msg)
			m.hear(e.append(nil))
		}
	}
	say(nil, "unsigned")
	say(keyOf("ns2"), "forged")
	if got := m.Notes(); len(got) != 0 {
		t.Errorf("notes %v, want none", got)
	}
	say(keyOf("ns1"), "signed")
	if got := m.Notes(); len(got) != 1 || string(got[0].Data) != "signed" {
		t.Errorf("notes %v, want the signed one", got)
	}
}
