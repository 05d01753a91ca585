package fuzz_test

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
	"testing/synctest"

	"github.com/failback/failback"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// peerSessions are those whose ends' words are the seeds of FuzzVerifyPeer and
// FuzzServePeer.
var peerSessions = map[string]struct {
	setup          setup
	verify, served byte
}{
	"compare":       {setup{}, 0, 0},
	"compare-pull":  {setup{pull: true}, verifyPull, serveSource},
	"compare-trees": {setup{trees: true}, verifyTree, serveTree},
	"sync":          {setup{sync: true}, verifySync, serveWritable},
	"sync-dirty":    {setup{sync: true, dirty: true}, verifySync | verifyDirty, serveWritable},
	"sync-as-is":    {setup{sync: true, codec: "none"}, verifySync, serveWritable},
	"sync-zstd":     {setup{sync: true, codec: "zstd"}, verifySync, serveWritable},
	"sync-pull":     {setup{sync: true, pull: true}, verifySync | verifyPull, serveSource},
	"sync-seal":     {setup{sync: true, seal: true}, verifySync | verifySeal, serveWritable},
	"sync-sparse":   {setup{sync: true, sparse: true}, verifySync | verifySparse, serveWritable | serveSparse},
	"dirty-pull":    {setup{sync: true, pull: true, dirty: true}, verifySync | verifyPull, serveSource},
}

// A lie is what a peer says in place of what was said in a session.
type lie struct {
	session string
	verify  bool // told by a served peer; else by one that comes to a server
	edits   []edit
}

// An edit changes the first frame of a kind, or what comes after it.
type edit struct {
	kind  transport.Kind
	at    int // byte of its payload that is xored with value
	value byte
	how   byte // drop, twice, or 0
	// take is the kind of a frame of the session from that comes after it.
	from string
	take transport.Kind
}

// What an edit does besides.
const (
	drop  byte = 1
	twice byte = 2
)

// peerLies are seeds too: each of them must be found out.
var peerLies = map[string]lie{
	"outside":         {"sync-dirty", false, []edit{{kind: message.Data{}.Kind(), at: 15, value: 0x30}}},
	"past-the-end":    {"sync-dirty", false, []edit{{kind: message.Data{}.Kind(), at: 16, value: 1}}},
	"zero-outside":    {"sync-dirty", false, []edit{{kind: message.Zero{}.Kind(), at: 3, value: 0x20}}},
	"data-twice":      {"sync", false, []edit{{kind: message.Data{}.Kind(), how: twice}}},
	"data-to-look":    {"compare", false, []edit{{kind: message.Extents{}.Kind(), from: "sync", take: message.Data{}.Kind()}}},
	"barrier-to-look": {"compare", false, []edit{{kind: message.Extents{}.Kind(), from: "sync", take: message.Barrier{}.Kind()}}},
	"other-session":   {"sync", false, []edit{{kind: message.Start{}.Kind(), value: 1}}},
	"seal-early":      {"compare", false, []edit{{kind: message.Extents{}.Kind(), from: "compare", take: message.Seal{}.Kind()}}},
	"no-barrier":      {"sync-seal", false, []edit{{kind: message.Barrier{}.Kind(), how: drop}}},
	"pass-to-look":    {"compare", false, []edit{{kind: message.Extents{}.Kind(), from: "sync-seal", take: message.Pass{}.Kind()}}},
	"no-barrier-wrong-root": {"sync-seal", false, []edit{
		{kind: message.Barrier{}.Kind(), how: drop}, {kind: message.Seal{}.Kind(), at: 5, value: 9}}},
	"larger":         {"sync", true, []edit{{kind: message.Info{}.Kind(), at: 21, value: 1}}},
	"other-unit":     {"compare", true, []edit{{kind: message.Digests{}.Kind(), value: 200}}},
	"pieces-twice":   {"compare", true, []edit{{kind: message.Pieces{}.Kind(), how: twice}}},
	"credit-unasked": {"sync", true, []edit{{kind: message.Agree{}.Kind(), from: "sync", take: message.Credit{}.Kind()}}},
	"ack-unasked":    {"sync", true, []edit{{kind: message.Agree{}.Kind(), from: "sync", take: message.Ack{}.Kind()}}},
	"sync-to-look":   {"compare-pull", true, []edit{{kind: message.Start{}.Kind(), at: 16, value: 3}}},  // the mode
	"other-result":   {"compare-pull", true, []edit{{kind: message.Report{}.Kind(), at: 42, value: 1}}}, // in its first letter
	"other-root":     {"sync-seal", true, []edit{{kind: message.Sealed{}.Kind(), at: 5, value: 9}}},
}

func (l lie) target() string {
	if l.verify {
		return "FuzzVerifyPeer"
	}
	return "FuzzServePeer"
}

// tell makes the lie's seed of those of true sessions.
func (l lie) tell(t *testing.T) []byte {
	in := readSeed(t, l.target(), l.session)
	s := scriptOf(in)
	for _, e := range l.edits {
		i := s.find(t, e.kind)
		switch {
		case e.from != "":
			other := scriptOf(readSeed(t, l.target(), e.from))
			s.lines = slices.Insert(s.lines, i+1, line{s.lines[i].after, other.lines[other.find(t, e.take)].frame})
		case e.how == drop:
			s.lines = slices.Delete(s.lines, i, i+1)
		case e.how == twice:
			s.lines = slices.Insert(s.lines, i, s.lines[i])
		default:
			s.lines[i].frame[transport.HeaderSize+e.at] ^= e.value
		}
	}
	out := in[:1:1]
	for _, x := range s.lines {
		out = appendLine(out, x.after, x.frame)
	}
	return out
}

func (s *script) find(t *testing.T, k transport.Kind) int {
	i := slices.IndexFunc(s.lines, func(l line) bool { return l.frame[0] == byte(k) })
	if i < 0 {
		t.Fatalf("no frame of kind %d", k)
	}
	return i
}

// TestPeerLies has every lie told, and wants it found out.
func TestPeerLies(t *testing.T) {
	preparePairs(t)
	for name, l := range peerLies {
		t.Run(name, func(t *testing.T) {
			if *updateStream {
				writeSeed(t, l.target(), name, l.tell(t))
			}
			s := scriptOf(readSeed(t, l.target(), name))
			cryptotest.SetGlobalRandom(t, 1)
			synctest.Test(t, func(t *testing.T) {
				var err error
				if l.verify {
					_, err = s.meet(t, ourVolume(s.bits))
				} else {
					err = s.beServed(t, s.servedVolume())
				}
				if t.Log(err); err == nil {
					t.Error("the session ended well")
				}
			})
		})
	}
}

// TestPeerSeeds wants the committed seeds to be alive: what was said in a real
// session still leads one to its end. With -update.stream it writes them anew.
func TestPeerSeeds(t *testing.T) {
	preparePairs(t)
	for name, c := range peerSessions {
		t.Run(name, func(t *testing.T) {
			if *updateStream {
				c.setup.streams, c.setup.pattern = 1, peerPair
				c.setup.codec = cmp.Or(c.setup.codec, "lz4") // bodies of some bytes, not thousands
				writeSeed(t, "FuzzVerifyPeer", name, record(t, c.setup, c.verify, true))
				writeSeed(t, "FuzzServePeer", name, record(t, c.setup, c.served, false))
			}
			cryptotest.SetGlobalRandom(t, 1)
			v := ourVolume(c.verify)
			synctest.Test(t, func(t *testing.T) {
				_, err := scriptOf(readSeed(t, "FuzzVerifyPeer", name)).meet(t, v)
				// A target that syncs draws another share than then: what it reads back
				// does not match the digests that were recorded.
				var verify *failback.VerifyError
				if mayFail := c.setup.sync && c.setup.pull; err != nil && !(mayFail && errors.As(err, &verify)) {
					t.Errorf("the server's part: %v", err)
				}
			})
			cryptotest.SetGlobalRandom(t, 1)
			s := scriptOf(readSeed(t, "FuzzServePeer", name))
			synctest.Test(t, func(t *testing.T) {
				if err := s.beServed(t, s.servedVolume()); err != nil {
					t.Errorf("the part of who came to the server: %v", err)
				}
			})
		})
	}
}

// record makes an input of what one end of a session says.
func record(t *testing.T, o setup, bits byte, server bool) []byte {
	in := []byte{bits}
	heard := 0
	var mu sync.Mutex
	m := meet(t, &link{o: o, record: func(fromServer bool, frame []byte) {
		mu.Lock()
		defer mu.Unlock()
		if fromServer == server {
			in = appendLine(in, heard, frame)
		} else {
			heard++
		}
	}})
	if m.err != nil {
		t.Fatal(m.err)
	}
	return in
}

func seedPath(target, name string) string {
	return filepath.Join("testdata", "fuzz", target, "seed-"+name)
}

func writeSeed(t *testing.T, target, name string, in []byte) {
	path := seedPath(target, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, fmt.Appendf(nil, "go test fuzz v1\n[]byte(%+q)\n", in), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readSeed(t *testing.T, target, name string) []byte {
	b, err := os.ReadFile(seedPath(target, name))
	if err != nil {
		t.Fatalf("%v (write the seeds: go test ./fuzz -run PeerSeeds -update.stream)", err)
	}
	_, quoted, _ := strings.Cut(string(b), "[]byte(")
	in, err := strconv.Unquote(strings.TrimSuffix(strings.TrimSpace(quoted), ")"))
	if err != nil || in == "" {
		t.Fatalf("%s holds no input: %v", seedPath(target, name), err)
	}
	return []byte(in)
}
