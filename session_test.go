package failback

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
)

func TestSync(t *testing.T) {
	for i, topo := range topologies {
		for _, size := range []int{512, 4096, 64<<10 + 512, 5<<20 + 1536} {
			for _, n := range []int{0, 1, 40} {
				t.Run(fmt.Sprintf("%s/%d bytes/%d changes", topo.name, size, n), func(t *testing.T) {
					src := randomVolume(1, size)
					dst := clone(src)
					scatter(dst, 7, n)
					want := differing4k(src, dst)
					a, b := arrange(t, i, Side{Volume: src, Name: "src"}, Side{Volume: dst, Name: "dst"})
					r, err := Sync(t.Context(), a, b, Options{Streams: topo.streams})
					if err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(src.b, dst.b) {
						t.Fatal("not equal")
					}
					if r.Result != ResultEqual || r.Rung != "merkle" || r.Verified != "changed" || r.DivergentBytes != want || r.RawBytes != want {
						t.Errorf("report %+v, %d bytes differed", r, want)
					}
					if r.SourceReadBytes != int64(size) || r.TargetReadBytes != int64(size) || r.TargetWrittenBytes != want {
						t.Errorf("read %d and %d, wrote %d; want %d, %d, %d", r.SourceReadBytes, r.TargetReadBytes, r.TargetWrittenBytes, size, size, want)
					}
					if r.RoundTrips > 5 {
						t.Errorf("%d round trips", r.RoundTrips)
					}
				})
			}
		}
	}
}

// TestSyncManyUnits: more units than the target may be ahead, in either order of arrival.
func TestSyncManyUnits(t *testing.T) {
	const size = (lookahead + 50) * maxUnitLeaves * 4096 // units of 64 leaves of 4 KiB
	for i, topo := range topologies[:2] {
		for _, full := range []Rung{RungAuto, RungFull} {
			t.Run(fmt.Sprintf("%s/%v", topo.name, full), func(t *testing.T) {
				src := randomVolume(1, size)
				dst := clone(src)
				scatter(dst, 7, 3000)
				a, b := arrange(t, i, Side{Volume: src, Name: "src"}, Side{Volume: dst, Name: "dst"})
				r, err := Sync(t.Context(), a, b, Options{Streams: topo.streams, Leaf: 4096, Rung: full, Workers: 3, Window: minWindow})
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(src.b, dst.b) {
					t.Fatalf("not equal: %+v", r)
				}
			})
		}
	}
}

// TestSyncOneServer: both volumes at one server, which then plays both roles.
func TestSyncOneServer(t *testing.T) {
	for _, streams := range []int{1, 3} {
		src, dst := randomVolume(1, 3<<20), randomVolume(2, 3<<20)
		far := serveAll(t, Options{}, Side{Volume: src, Name: "src"}, Side{Volume: dst, Name: "dst"})
		r, err := Sync(t.Context(), far[0], far[1], Options{Streams: streams})
		if err != nil || !bytes.Equal(src.b, dst.b) {
			t.Fatalf("%d streams: %+v, %v", streams, r, err)
		}
	}
}

// TestMapOfAnother: a dirty map of some other volume vouches for nothing (L1, L4).
func TestMapOfAnother(t *testing.T) {
	for i, topo := range topologies {
		t.Run(topo.name, func(t *testing.T) {
			src, dst := randomVolume(1, 2<<20), randomVolume(2, 2<<20)
			before := bytes.Clone(dst.b)
			a, b := arrange(t, i, Side{Volume: src, Name: "src", Dirty: dirtyMap(t, 1<<20, nil)}, Side{Volume: dst, Name: "dst"})
			_, err := Sync(t.Context(), a, b, Options{})
			var refused *RefusedError
			if !errors.As(err, &refused) || !bytes.Equal(before, dst.b) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestSyncExact: with a map only what it names is read, and only what differs is sent.
func TestSyncExact(t *testing.T) {
	for i, topo := range topologies {
		t.Run(topo.name, func(t *testing.T) {
			src := randomVolume(1, 8<<20)
			dst := clone(src)
			dirty := scatter(src, 3, 50)
			// Written with the same content again: dirty, not different.
			dirty = cbt.Union(dirty, []cbt.Extent{{Off: 1 << 20, End: 2 << 20}})
			want := differing4k(src, dst)
			a, b := arrange(t, i, Side{Volume: src, Name: "src", Dirty: dirtyMap(t, src.Size(), dirty)}, Side{Volume: dst, Name: "dst"})
			var plans []Plan
			r, err := Sync(t.Context(), a, b, Options{Streams: topo.streams, Events: Events{Plan: func(p Plan) { plans = append(plans, p) }}})
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(src.b, dst.b) {
				t.Fatal("not equal")
			}
			cand := cbt.Total(dirty)
			if r.Rung != "exact" || r.CandidateBytes != cand || r.SourceReadBytes != cand || r.TargetReadBytes != cand || r.DivergentBytes != want {
				t.Errorf("report %+v; want %d candidates, %d divergent", r, cand, want)
			}
			if len(plans) != 1 || plans[0].Rung != RungExact || plans[0].Candidates != cand {
				t.Errorf("plans told: %+v", plans)
			}
		})
	}
}

// TestSyncTrees: a kept tree spares its side the reading.
func TestSyncTrees(t *testing.T) {
	const size = 9<<20 + 512
	for _, alg := range []merkle.Algorithm{merkle.SHA256, merkle.BLAKE3} {
		for mask := 1; mask < 4; mask++ {
			for _, mapped := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v/sides %d/mapped=%v", alg, mask, mapped), func(t *testing.T) {
					testSyncTree(t, size, alg, mask, mapped)
				})
			}
		}
	}
}

func testSyncTree(t *testing.T, size int, alg merkle.Algorithm, mask int, mapped bool) {
	src := randomVolume(1, size)
	dst := clone(src)
	scatter(src, 3, 20)
	a := Side{Volume: src, Name: "src"}
	b := Side{Volume: dst, Name: "dst"}
	dir := t.TempDir()
	keep := func(s *Side, name string, v *memory) {
		s.Tree = filepath.Join(dir, name)
		if _, err := Digest(t.Context(), *bare(s), s.Tree, Options{Hash: alg}); err != nil {
			t.Fatal(err)
		}
		if !mapped {
			s.TrustTree = true
			return
		}
		s.Dirty = dirtyMap(t, int64(size), scatter(v, 11, 3))
	}
	if mask&1 != 0 {
		keep(&a, "a.fbt", src)
	}
	if mask&2 != 0 {
		keep(&b, "b.fbt", dst)
	}
	r, err := Sync(t.Context(), a, b, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(src.b, dst.b) {
		t.Fatal("not equal")
	}
	if r.Rung != "merkle" {
		t.Errorf("rung %s (%s)", r.Rung, r.Reason)
	}
	few := int64(45 * 64 << 10)
	if mask&1 != 0 && r.SourceReadBytes > few {
		t.Errorf("source read %d bytes with a tree", r.SourceReadBytes)
	}
	if mask&2 != 0 && r.TargetReadBytes > few {
		t.Errorf("target read %d bytes with a tree", r.TargetReadBytes)
	}
}

// bare is the side without its tree, as it is when the tree is made.
func bare(s *Side) *Side {
	c := *s
	c.Tree = ""
	return &c
}

// TestTreeUnvouched: a tree that nobody vouches for is refused (L1).
func TestTreeUnvouched(t *testing.T) {
	v := randomVolume(1, 1<<20)
	s := Side{Volume: v, Name: "v"}
	path := filepath.Join(t.TempDir(), "v.fbt")
	if _, err := Digest(t.Context(), s, path, Options{}); err != nil {
		t.Fatal(err)
	}
	s.Tree = path
	_, err := Sync(t.Context(), s, Side{Volume: clone(v), Name: "w"}, Options{})
	var refused *RefusedError
	if !errors.As(err, &refused) {
		t.Fatalf("got %v, want a refusal", err)
	}
}

// TestSeal: both roots are made from the medium and are equal.
func TestSeal(t *testing.T) {
	for i, topo := range topologies[:4] {
		for _, alg := range []merkle.Algorithm{merkle.SHA256, merkle.BLAKE3} {
			t.Run(fmt.Sprintf("%s/%v", topo.name, alg), func(t *testing.T) {
				src := &sparseMemory{memory{b: make([]byte, 20<<20+512)}}
				copy(src.b[3<<20:], randomBytes(1, 1<<20))
				dst := &sparseMemory{memory{b: make([]byte, len(src.b))}}
				copy(dst.b[9<<20:], randomBytes(2, 1<<20))
				a, b := arrange(t, i, Side{Volume: src, Name: "src"}, Side{Volume: dst, Name: "dst"})
				r, err := Sync(t.Context(), a, b, Options{Seal: alg})
				if err != nil {
					t.Fatal(err)
				}
				d, err := Digest(t.Context(), Side{Volume: &src.memory, Name: "src"}, filepath.Join(t.TempDir(), "x"), Options{Hash: alg})
				if err != nil {
					t.Fatal(err)
				}
				if r.Root == nil || *r.Root != *d.Root || !bytes.Equal(src.b, dst.b) {
					t.Errorf("sealed %v, digest %v", r.Root, *d.Root)
				}
			})
		}
	}
}

// TestDigestRemote: a peer's volume digested there gives the tree made here.
func TestDigestRemote(t *testing.T) {
	v := &sparseMemory{memory{b: make([]byte, 6<<20+512)}}
	copy(v.b[2<<20:], randomBytes(1, 1<<20))
	dir := t.TempDir()
	here, err := Digest(t.Context(), Side{Volume: v, Name: "v"}, filepath.Join(dir, "a"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	there, err := Digest(t.Context(), serve(t, Side{Volume: v, Name: "v"}, Options{}), filepath.Join(dir, "b"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if *here.Root != *there.Root {
		t.Errorf("roots %s here, %s there", *here.Root, *there.Root)
	}
	r, err := Compare(t.Context(), Side{Tree: filepath.Join(dir, "a")}, Side{Tree: filepath.Join(dir, "b")}, Options{})
	if err != nil || !r.Equal() {
		t.Errorf("compare trees: %+v, %v", r, err)
	}
}

func TestCompare(t *testing.T) {
	for i, topo := range topologies[:4] {
		for _, n := range []int{0, 1, 30} {
			t.Run(fmt.Sprintf("%s/%d changes", topo.name, n), func(t *testing.T) {
				src := randomVolume(1, 7<<20+512)
				dst := clone(src)
				want := scatter(dst, 5, n)
				before := bytes.Clone(dst.b)
				a, b := arrange(t, i, Side{Volume: src, Name: "src"}, Side{Volume: dst, Name: "dst"})
				r, err := Compare(t.Context(), a, b, Options{})
				if err != nil {
					t.Fatal(err)
				}
				if r.Equal() != (n == 0) || fmt.Sprint(r.Extents) != fmt.Sprint(want) {
					t.Errorf("%s: %v, want %v", r.Result, r.Extents, want)
				}
				if !bytes.Equal(before, dst.b) {
					t.Error("a comparison wrote")
				}
			})
		}
	}
}

// TestCompareDigest: a volume against a digest of what it was, to the leaf.
func TestCompareDigest(t *testing.T) {
	v := randomVolume(1, 3<<20+512)
	path := filepath.Join(t.TempDir(), "v.fbt")
	if _, err := Digest(t.Context(), Side{Volume: v, Name: "v"}, path, Options{}); err != nil {
		t.Fatal(err)
	}
	for _, served := range []bool{false, true} {
		side := Side{Volume: v, Name: "v"}
		if served {
			side = serve(t, side, Options{})
		}
		r, err := Compare(t.Context(), side, Side{Tree: path}, Options{})
		if err != nil || !r.Equal() {
			t.Fatalf("unchanged: %+v, %v", r, err)
		}
		want := cbt.Align(scatter(v, 9, 2), defaultLeaf, v.Size())
		r, err = Compare(t.Context(), side, Side{Tree: path}, Options{})
		if err != nil || fmt.Sprint(r.Extents) != fmt.Sprint(want) {
			t.Fatalf("changed: %+v, %v; want %v", r, err, want)
		}
		v = randomVolume(1, 3<<20+512)
	}
}

// TestCompareDigestSparse: a digest knows where its volume is zero, and only
// what either side holds is read.
func TestCompareDigestSparse(t *testing.T) {
	v := &sparseMemory{memory{b: make([]byte, 64<<20)}}
	copy(v.b[5<<20:], randomBytes(1, 1<<20))
	path := filepath.Join(t.TempDir(), "v.fbt")
	side := Side{Volume: v, Name: "v"}
	if _, err := Digest(t.Context(), side, path, Options{}); err != nil {
		t.Fatal(err)
	}
	r, err := Compare(t.Context(), side, Side{Tree: path}, Options{})
	if err != nil || !r.Equal() || r.CandidateBytes != 1<<20 {
		t.Fatalf("unchanged: %+v, %v", r, err)
	}
	clear(v.b[5<<20 : 6<<20]) // a hole where the digest has data
	copy(v.b[40<<20:], randomBytes(2, 1<<20))
	r, err = Compare(t.Context(), side, Side{Tree: path}, Options{})
	if err != nil || fmt.Sprint(r.Extents) != fmt.Sprint([]cbt.Extent{{Off: 5 << 20, End: 6 << 20}, {Off: 40 << 20, End: 41 << 20}}) {
		t.Fatalf("changed: %+v, %v", r, err)
	}
}

func TestDryRun(t *testing.T) {
	src, dst := randomVolume(1, 2<<20), randomVolume(2, 2<<20)
	before := bytes.Clone(dst.b)
	r, err := Sync(t.Context(), Side{Volume: src, Name: "src"}, Side{Volume: dst, Name: "dst"}, Options{DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	if r.Result != ResultPlanned || r.DivergentBytes != 2<<20 || r.RawBytes != 0 || !bytes.Equal(before, dst.b) {
		t.Errorf("report %+v", r)
	}
}

// TestSyncSparse: holes of both sides are neither read nor sent, zeroes are zeroed.
func TestSyncSparse(t *testing.T) {
	src := &sparseMemory{memory{b: make([]byte, 64<<20)}}
	copy(src.b[5<<20:], randomBytes(1, 1<<20))
	for _, stale := range []bool{false, true} {
		dst := &sparseMemory{memory{b: make([]byte, 64<<20)}}
		if stale {
			copy(dst.b[40<<20:], randomBytes(2, 1<<20))
		}
		r, err := Sync(t.Context(), Side{Volume: src, Name: "src"}, Side{Volume: dst, Name: "dst"}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(src.b, dst.b) {
			t.Fatal("not equal")
		}
		want, zero := "allocated", int64(0)
		if stale {
			want, zero = "merkle", 1<<20
		}
		if r.Rung != want || r.ZeroBytes != zero || r.RawBytes != 1<<20 || r.SourceReadBytes > 3<<20 {
			t.Errorf("report %+v", r)
		}
	}
}

func TestSyncFull(t *testing.T) {
	src, dst := randomVolume(1, 3<<20), randomVolume(1, 3<<20)
	clear(src.b[1<<20 : 2<<20])
	r, err := Sync(t.Context(), Side{Volume: src, Name: "src"}, Side{Volume: dst, Name: "dst"}, Options{Rung: RungFull, Verify: VerifyFull})
	if err != nil {
		t.Fatal(err)
	}
	if r.Rung != "full" || r.RawBytes != 2<<20 || r.ZeroBytes != 1<<20 || r.TargetReadBytes != 0 || !bytes.Equal(src.b, dst.b) {
		t.Errorf("report %+v", r)
	}
}

// lying is a volume whose medium does not hold what was written to one place.
type lying struct {
	*memory
	at int64
}

func (l lying) ReadMediumAt(p []byte, off int64) (int, error) {
	n, err := l.ReadAt(p, off)
	if off <= l.at && l.at < off+int64(n) {
		p[l.at-off] ^= 1
	}
	return n, err
}

// TestVerifyReadsBack: what the medium holds counts, not what was sent (L7).
func TestVerifyReadsBack(t *testing.T) {
	for _, v := range []Verification{VerifyChanged, VerifyFull} {
		src, dst := randomVolume(1, 4<<20), randomVolume(2, 4<<20)
		_, err := Sync(t.Context(), Side{Volume: src, Name: "src"}, Side{Volume: lying{dst, 3<<20 + 5}, Name: "dst"}, Options{Verify: v})
		var ve *VerifyError
		if !errors.As(err, &ve) || ve.Extent.Off != 3<<20 {
			t.Errorf("%v: got %v", v, err)
		}
	}
	// What was not written is read by a full check only.
	src := randomVolume(1, 4<<20)
	dst := clone(src)
	_, err := Sync(t.Context(), Side{Volume: src, Name: "src"}, Side{Volume: lying{dst, 3<<20 + 5}, Name: "dst"}, Options{Verify: VerifyFull})
	var ve *VerifyError
	if !errors.As(err, &ve) {
		t.Errorf("full: got %v", err)
	}
}

func TestRefusals(t *testing.T) {
	small, large := randomVolume(1, 1<<20), randomVolume(1, 2<<20)
	for _, c := range []struct {
		name     string
		src, dst *memory
		o        Options
		ok       bool
	}{
		{"smaller target", large, small, Options{}, false},
		{"larger target", small, large, Options{}, false},
		{"larger target allowed", small, large, Options{AllowLarger: true}, true},
		{"smaller target allowed larger", large, small, Options{AllowLarger: true}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			end := bytes.Clone(large.b[1<<20:])
			_, err := Sync(t.Context(), Side{Volume: c.src, Name: "src"}, Side{Volume: c.dst, Name: "dst"}, c.o)
			var refused *RefusedError
			if c.ok != (err == nil) || !c.ok && !errors.As(err, &refused) {
				t.Errorf("got %v", err)
			}
			if !bytes.Equal(large.b[1<<20:], end) {
				t.Error("the end of the larger volume was touched")
			}
		})
	}
}
