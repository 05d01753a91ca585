package failback

import (
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"testing"
)

// nhForms are the implementations this machine can run.
func nhForms() map[string]func(*[nhSums]uint64, []byte, *[nhKeyBytes]byte) {
	forms := nhMachine()
	forms["nh"] = nh
	forms["generic"] = nhGeneric
	return forms
}

func nhRandom(t testing.TB) ([]byte, *[nhKeyBytes]byte) {
	msg, key := make([]byte, pieceSize), new([nhKeyBytes]byte)
	for _, b := range [][]byte{msg, key[:]} {
		if _, err := rand.Read(b); err != nil {
			t.Fatal(err)
		}
	}
	return msg, key
}

// nhNaive is the formula word by word, from nothing the code shares.
func nhNaive(msg []byte, key []byte) (out [nhSums]uint64) {
	word := func(b []byte, i int) uint32 {
		return uint32(b[4*i]) | uint32(b[4*i+1])<<8 | uint32(b[4*i+2])<<16 | uint32(b[4*i+3])<<24
	}
	for j := range out {
		for i := 0; i < len(msg)/4; i += 2 {
			out[j] += uint64(word(msg, i)+word(key, i+16*j)) * uint64(word(msg, i+1)+word(key, i+1+16*j))
		}
	}
	return out
}

func TestNHForms(t *testing.T) {
	for name, f := range nhForms() {
		for n := 0; n <= pieceSize; n += nhBlock {
			msg, key := nhRandom(t)
			var got [nhSums]uint64
			f(&got, msg[:n], key)
			if want := nhNaive(msg[:n], key[:]); got != want {
				t.Fatalf("%s of %d bytes: %x, want %x", name, n, got, want)
			}
		}
		// The largest words and keys: carries must be lost where the formula loses them.
		msg, key := make([]byte, pieceSize), new([nhKeyBytes]byte)
		for i := range msg {
			msg[i] = 0xff
		}
		for i := range key {
			key[i] = 0xff
		}
		var got [nhSums]uint64
		f(&got, msg, key)
		if want := nhNaive(msg, key[:]); got != want {
			t.Fatalf("%s of ones: %x, want %x", name, got, want)
		}
	}
}

// TestTags: a tag tells content, place and nothing else.
func TestTags(t *testing.T) {
	msg, _ := nhRandom(t)
	key := sessionKey([16]byte{1}, [16]byte{2}, [16]byte{3})
	a, err := newTagger(key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := newTagger(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{512, 1024, 1536, 4096} {
		want := a.piece(8192, msg[:n])
		if got := b.piece(8192, msg[:n]); got != want {
			t.Errorf("%d bytes: two taggers of one key disagree", n)
		}
		if a.piece(0, msg[:n]) == want {
			t.Errorf("%d bytes: the same tag at another place", n)
		}
		if a.piece(8192, make([]byte, n)) != (tag{}) {
			t.Errorf("%d zero bytes have a tag", n)
		}
		for i := range n {
			msg[i] ^= 1 << (i % 8)
			if a.piece(8192, msg[:n]) == want {
				t.Errorf("%d bytes: a flipped bit in byte %d has the same tag", n, i)
			}
			msg[i] ^= 1 << (i % 8)
		}
	}
	other, err := newTagger(sessionKey([16]byte{1}, [16]byte{2}, [16]byte{4}))
	if err != nil {
		t.Fatal(err)
	}
	if other.piece(0, msg) == a.piece(0, msg) {
		t.Error("the same tag under another key")
	}
}

// TestTagVector holds the digest to the one that docs/PROTOCOL.md gives.
func TestTagVector(t *testing.T) {
	tg, err := newTagger(sessionKey([16]byte{1}, [16]byte{2}, [16]byte{3}))
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 512)
	for i := range b {
		b[i] = byte(i)
	}
	got := fmt.Sprintf("%x", tg.piece(4096, b))
	page, err := os.ReadFile("docs/PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), "`"+got+"`") {
		t.Errorf("digest %s is not the one docs/PROTOCOL.md gives", got)
	}
}

func BenchmarkNH(b *testing.B) {
	msg, key := nhRandom(b)
	for name, f := range nhForms() {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(pieceSize)
			b.ReportAllocs()
			var out [nhSums]uint64
			for b.Loop() {
				f(&out, msg, key)
			}
		})
	}
}

func BenchmarkTag(b *testing.B) {
	msg, _ := nhRandom(b)
	t, err := newTagger([32]byte{1})
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{512, pieceSize} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				t.piece(4096, msg[:n])
			}
		})
	}
}
