package failback

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// A tale is a session that a served source drives, as it was asked for unless a
// test changes a part of it.
type tale struct {
	start  message.Start
	plan   message.Plan
	list   []cbt.Extent
	pass   *message.Pass // nil: none
	passed []cbt.Extent
	seal   message.Seal
	report Report
}

// honest is what a source that was asked for o may say of volumes of
// hostileSize: it looks at first and third, and finds them equal.
func honest(m mode, o Options) *tale {
	o, _ = o.filled()
	list := []cbt.Extent{first, third}
	s := &tale{
		start: message.Start{Session: hostileSession, Mode: uint8(m), DryRun: o.DryRun, Undo: o.undo(), Volume: hostileInfo(), Streams: 1},
		plan:  hostilePlan(list), list: list,
		report: Report{Schema: schemaSync, Result: ResultEqual, Verified: o.Verify.String(), VolumeBytes: hostileSize, CandidateBytes: cbt.Total(list),
			Codec: map[string]int64{}},
	}
	s.plan.Verify, s.plan.Seal = uint8(o.Verify), uint8(o.Seal)
	switch {
	case m == modeCompare:
		s.report.Schema, s.report.Verified = schemaCompare, ""
	case o.DryRun:
		s.report.Result, s.report.Verified = ResultPlanned, ""
	case o.Verify == VerifyFull || o.Seal != 0:
		s.pass = &message.Pass{Purpose: 1, Digest: uint8(o.Seal), Leaf: defaultLeaf}
		s.passed = wholeOf(hostileSize)
	}
	return s
}

// tell plays the source. Where it is not believed any more, nobody listens.
func (s *tale) tell(v *villain) {
	s.start.Session = v.open.Session
	v.say(s.start)
	v.wait(kindInfo)
	v.say(s.plan, message.Extents{Purpose: extentsCandidates, Last: true, Extents: wireExtents(s.list)})
	v.wait(kindAgree)
	v.wait(kindDigests)
	if mode(s.start.Mode) == modeSync && !s.start.DryRun {
		v.say(message.Barrier{ID: 1, Final: true})
		v.wait(kindAck)
	}
	if s.pass != nil {
		v.say(*s.pass, message.Extents{Purpose: extentsCandidates, Last: true, Extents: wireExtents(s.passed)})
		for range cbt.Total(s.passed) >> 20 {
			v.wait(kindDigests)
		}
	}
	v.say(s.seal)
	v.wait(kindSealed)
	chunk, err := s.report.encode()
	if err != nil {
		v.t.Error(err)
	}
	v.say(message.Report{Last: true, Chunk: chunk}, message.Bye{})
}

// wait is hear, for what comes unless the other end has had enough.
func (v *villain) wait(kind transport.Kind) { _, _ = v.hear(kind) }

// rootOf is the root of the volume that a puller has in these tests.
func rootOf(t *testing.T) merkle.Hash {
	r, err := Digest(context.Background(), Side{Volume: randomVolume(1, hostileSize)}, t.TempDir()+"/d.fbt", Options{Hash: merkle.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	root, err := merkle.ParseHash(*r.Root)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// sealedWith puts a root in the tale, as the source's and in the report.
func (s *tale) sealedWith(root merkle.Hash, algorithm merkle.Algorithm) {
	s.seal = message.Seal{Algorithm: uint8(algorithm), Root: root}
	text := root.String()
	s.report.Root = &text
}

// TestHostileAnswers: L3, L7, L9. What a served source says is held against what
// it was asked for and what happened here. In each case the tale is believed but
// for the one part that is changed.
func TestHostileAnswers(t *testing.T) {
	root := rootOf(t)
	sealed := Options{Seal: merkle.SHA256, Verify: VerifyFull}
	undo := Options{Undo: true, DryRun: true}
	for _, c := range []struct {
		name, want string
		mode       mode
		o          Options
		change     func(s *tale)
	}{
		{"a sync as asked for", "", modeSync, Options{}, func(*tale) {}},
		{"a comparison as asked for", "", modeCompare, Options{}, func(*tale) {}},
		{"a dry run as asked for", "", modeSync, Options{DryRun: true}, func(*tale) {}},
		{"verified as asked for", "", modeSync, Options{Verify: VerifyFull}, func(*tale) {}},
		{"sealed as asked for", "", modeSync, sealed, func(*tale) {}},
		{"figures of what it alone counts", "", modeSync, Options{}, func(s *tale) {
			s.report.DivergentBytes, s.report.RawBytes, s.report.ZeroBytes = 8192, 4096, 4096
			s.report.Codec = map[string]int64{"lz4": 4096}
		}},
		{"a comparison that differs", "", modeCompare, Options{}, func(s *tale) {
			s.report.Result, s.report.DivergentBytes = ResultDifferent, 4096
			s.report.Extents = []cbt.Extent{{Off: 0, End: 4096}}
		}},
		{"extents that cover more", "", modeCompare, Options{}, func(s *tale) {
			s.report.Result, s.report.DivergentBytes, s.report.Coarse = ResultDifferent, 4096, true
			s.report.Extents = []cbt.Extent{{Off: 0, End: 8192}}
		}},
		{"a root of its own tree", "", modeSync, Options{}, func(s *tale) {
			s.sealedWith(root, 0)
			s.seal = message.Seal{}
		}},

		{"a comparison for a sync", "start of a comparison, asked for was a sync", modeSync, Options{}, func(s *tale) { s.start.Mode = uint8(modeCompare) }},
		{"a sync for a comparison", "start of a sync, asked for was a comparison", modeCompare, Options{}, func(s *tale) { s.start.Mode = uint8(modeSync) }},
		{"a sync for a dry run", "start of a sync, asked for was a dry run", modeSync, Options{DryRun: true}, func(s *tale) { s.start.DryRun = false }},
		{"a dry run for a sync", "start of a dry run, asked for was a sync", modeSync, Options{}, func(s *tale) { s.start.DryRun = true }},
		{"a session that is gone on with", "start with resume 2", modeSync, Options{}, func(s *tale) { s.start.Resume = resumeIfPossible }},
		{"a comparison of the medium", "comparison of the medium true, asked for was false", modeSync, Options{}, func(s *tale) { s.start.Medium = true }},
		{"no undo log", "start with undo 0, asked for was 1", modeSync, undo, func(s *tale) { s.start.Undo = 0 }},

		{"less proof than asked for", "plan with verification changed, asked for was full", modeSync, Options{Verify: VerifyFull}, func(s *tale) { s.plan.Verify = uint8(VerifyChanged) }},
		{"no seal", "plan with a seal of algorithm 0, asked for was 1", modeSync, sealed, func(s *tale) { s.plan.Seal = 0 }},
		{"another seal", "plan with a seal of algorithm 2, asked for was 1", modeSync, sealed, func(s *tale) { s.plan.Seal = 2 }},
		{"another rung", "plan of rung exact, asked for was merkle", modeSync, Options{Rung: RungMerkle}, func(s *tale) { s.plan.Rung = uint8(RungExact) }},
		{"other candidates than it tells", "candidates of 131072 bytes, the plan had 65536", modeSync, Options{}, func(s *tale) { s.plan.Candidates = 65536 }},

		{"a pass that nobody asked for", "a pass that was not asked for", modeSync, Options{}, func(s *tale) {
			s.pass = &message.Pass{Purpose: 1, Leaf: defaultLeaf}
		}},
		{"a pass with another hash", "a pass of algorithm 0 with leaves of 65536 bytes, asked for was 1", modeSync, sealed, func(s *tale) { s.pass.Digest = 0 }},
		{"a pass with other leaves", "leaves of 4096 bytes, asked for was 1 with 65536", modeSync, sealed, func(s *tale) { s.pass.Leaf = 4096 }},
		{"a pass over a part", "a pass that leaves out [0x100000,0x600000)", modeSync, sealed, func(s *tale) { s.passed = []cbt.Extent{{Off: 0, End: 1 << 20}} }},
		{"no pass", "without the pass over the volumes", modeSync, Options{Verify: VerifyFull}, func(s *tale) { s.pass = nil }},
		{"a seal of nothing", "a seal of algorithm 0, asked for was 1", modeSync, sealed, func(s *tale) { s.seal = message.Seal{} }},
		{"a seal that nobody asked for", "a seal of algorithm 1, asked for was 0", modeSync, Options{Verify: VerifyFull}, func(s *tale) { s.sealedWith(root, merkle.SHA256) }},
		{"roots that differ", "which is not that of the target", modeSync, sealed, func(s *tale) { s.sealedWith(merkle.Hash{1}, merkle.SHA256) }},
		{"another root in the report", "which is not that of the target", modeSync, sealed, func(s *tale) {
			text := merkle.Hash{1}.String()
			s.report.Root = &text
		}},
		{"no root in the report", "no root, and a seal was asked for", modeSync, sealed, func(s *tale) { s.report.Root = nil }},

		{"a root that is none", "report: root: ", modeSync, Options{}, func(s *tale) { s.report.Root = &s.report.Schema }},
		{"a root of a comparison", "a root, where no tree is made", modeCompare, Options{}, func(s *tale) {
			text := root.String()
			s.report.Root = &text
		}},
		{"another schema", `"failback.compare/1" "equal"`, modeSync, Options{}, func(s *tale) { s.report.Schema = schemaCompare }},
		{"a result of its own", `"fine", verified "changed", where`, modeSync, Options{}, func(s *tale) { s.report.Result = "fine" }},
		{"planned in place of done", `"planned", verified "changed", where`, modeSync, Options{}, func(s *tale) { s.report.Result = ResultPlanned }},
		{"more verified than was", `verified "full", where`, modeSync, Options{}, func(s *tale) { s.report.Verified = VerifyFull.String() }},
		{"verified in a comparison", `verified "full", where`, modeCompare, Options{}, func(s *tale) { s.report.Verified = VerifyFull.String() }},
		{"a volume below nothing", "volumebytes: -1", modeSync, Options{}, func(s *tale) { s.report.VolumeBytes = -1 }},
		{"time below nothing", "seconds total: -1", modeSync, Options{}, func(s *tale) { s.report.Seconds.Total = -1 }},
		{"a codec below nothing", "codec lz4: -1", modeSync, Options{}, func(s *tale) { s.report.Codec = map[string]int64{"lz4": -1} }},
		{"a larger volume", "where the volumes share 6291456", modeSync, Options{}, func(s *tale) { s.report.VolumeBytes++ }},
		{"more candidates", "where the plan had 131072", modeSync, Options{}, func(s *tale) { s.report.CandidateBytes = hostileSize }},
		{"resumed from somewhere", "from 4096 on, where the plan", modeSync, Options{}, func(s *tale) { s.report.ResumedFrom = 4096 }},
		{"more divergent than looked at", "262144 bytes divergent of 131072", modeSync, Options{}, func(s *tale) { s.report.DivergentBytes = 256 << 10 }},
		{"more sent than divergent", "4096 bytes sent and 4096 made zero", modeSync, Options{}, func(s *tale) {
			s.report.DivergentBytes, s.report.RawBytes, s.report.ZeroBytes = 4096, 4096, 4096
		}},
		{"equal with extents", "extents of 4096 bytes, where 0 are divergent", modeCompare, Options{}, func(s *tale) { s.report.Extents = []cbt.Extent{{Off: 0, End: 4096}} }},
		{"equal with extents that cover more", "extents of 4096 bytes, where 0 are divergent", modeCompare, Options{}, func(s *tale) {
			s.report.Extents, s.report.Coarse = []cbt.Extent{{Off: 0, End: 4096}}, true
		}},
		{"different in nothing", `"different", verified "", where`, modeCompare, Options{}, func(s *tale) { s.report.Result = ResultDifferent }},
		{"equal and divergent", `"equal", verified "", where`, modeCompare, Options{}, func(s *tale) { s.report.DivergentBytes = 4096 }},
		{"extents past the end", "in 6291456 bytes", modeCompare, Options{}, func(s *tale) {
			s.report.Result, s.report.DivergentBytes = ResultDifferent, 4096
			s.report.Extents = []cbt.Extent{{Off: hostileSize, End: hostileSize + 4096}}
		}},
		{"extents of a sync", "which only a comparison tells", modeSync, Options{}, func(s *tale) { s.report.Extents = []cbt.Extent{{Off: 0, End: 4096}} }},
		{"equal to a longer volume", "where one volume is 4096 longer", modeCompare, Options{}, func(s *tale) { s.start.Volume.Size += 4096 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := honest(c.mode, c.o)
			if c.o.Seal != 0 {
				s.sealedWith(root, c.o.Seal)
			}
			c.change(s)
			againstClient(t, func(ctx context.Context, here, there Side, _ string) error {
				o := c.o
				o.Workers = 2
				run := Sync
				if c.mode == modeCompare {
					run = Compare
				}
				r, err := run(ctx, there, here, o)
				if (r == nil) != (err != nil) {
					t.Errorf("report %v with error %v", r, err)
				}
				return err
			}, nil, s.tell, c.want)
		})
	}
}

// TestReportedHere: what is counted here is reported, and not what the source
// says of it; the plan is the one that was told.
func TestReportedHere(t *testing.T) {
	s := honest(modeSync, Options{})
	s.report.Rung, s.report.Reason, s.report.Target = "exact", "trust me", "somewhere else"
	s.report.TargetWrittenBytes, s.report.TargetVerifiedBytes, s.report.TargetReadBytes = 1<<40, 1<<40, 1<<40
	s.report.UndoBytes, s.report.UnsavedBytes, s.report.Attempts = 1<<40, 1<<40, 7
	var r *Report
	againstClient(t, func(ctx context.Context, here, there Side, _ string) (err error) {
		r, err = Sync(ctx, there, here, Options{Workers: 2})
		return err
	}, nil, s.tell, "")
	if r == nil {
		return
	}
	if r.Rung != "merkle" || r.Reason != "because" || r.Target != "here" || r.Attempts != 1 {
		t.Errorf("reported as %q, %q, onto %q, %d attempts", r.Rung, r.Reason, r.Target, r.Attempts)
	}
	if r.TargetReadBytes != 128<<10 || r.TargetWrittenBytes != 0 || r.TargetVerifiedBytes != 0 || r.UndoBytes != 0 || r.UnsavedBytes != 0 {
		t.Errorf("figures that were not counted here: %+v", r)
	}
}

// TestHostileRelayed: who passes frames between two peers holds the source to the
// same. The target here is an honest server's.
func TestHostileRelayed(t *testing.T) {
	for _, c := range []struct {
		name, want string
		change     func(s *tale)
	}{
		{"as asked for", "", func(*tale) {}},
		{"a dry run for a sync", "asked for was a sync", func(s *tale) { s.start.DryRun = true }},
		{"less proof than asked for", "asked for was changed", func(s *tale) { s.plan.Verify = 0 }},
		{"a result of its own", `"fine"`, func(s *tale) { s.report.Result = "fine" }},
		{"a larger volume", "where the volumes share", func(s *tale) { s.report.VolumeBytes++ }},
	} {
		t.Run(c.name, func(t *testing.T) {
			within(t, func(t *testing.T) {
				far, served := pipeServe(t.Context(), Options{Workers: 2}, Side{Volume: randomVolume(1, hostileSize), Name: "dst"})
				near, rw := transport.Pipe()
				v := newVillain(t, rw)
				s := honest(modeSync, Options{})
				c.change(s)
				var wg sync.WaitGroup
				wg.Go(func() {
					v.welcome()
					v.wait(kindTask)
					s.tell(v)
					v.leave(false)
				})
				_, err := Sync(t.Context(), dialOnce("there", near), far[0], Options{Workers: 2})
				wg.Wait()
				served()
				if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
					t.Errorf("got %v, want %q", err, c.want)
				}
			})
		})
	}
}

// TestHostileEarlySeal: L9. A seal that comes while the digests of its pass are
// made is the source's fault, and finds no tree that is half done.
func TestHostileEarlySeal(t *testing.T) {
	for _, digest := range []uint8{0, 2} {
		free := make(chan struct{})
		g := &faulty{memory: randomVolume(1, hostileSize), medium: func(int64) error { <-free; return nil }}
		c := crime{want: "a seal before all digests of its pass have come", do: func(v *villain) {
			defer close(free)
			v.moving(first)
			v.say(message.Barrier{ID: 1, Final: true})
			v.must(kindAck, nil)
			v.say(message.Pass{Purpose: 2, Digest: digest, Leaf: 4096},
				message.Extents{Purpose: extentsCandidates, Last: true, Extents: wireExtents(wholeOf(hostileSize))}, message.Seal{Algorithm: digest})
			v.wait(kindError)
		}}
		t.Run(fmt.Sprint(digest), func(t *testing.T) { c.againstTarget(t, Side{Volume: g}, true) })
	}
}

// TestHostileEarlyWant: L9. A source may ask for the pieces of a unit whose
// digests it does not have yet. The race detector finds it if the answer looks
// at them while they are made.
func TestHostileEarlyWant(t *testing.T) {
	const leaf = 4096
	unit := cbt.Extent{Off: 0, End: 64 * leaf}
	for range 50 {
		// The unit is being read, for its digests, when the answer begins to read it too.
		taken, asked, reads := make(chan struct{}), make(chan struct{}), atomic.Int64{}
		g := &faulty{memory: randomVolume(1, hostileSize), read: func(int64) error {
			switch reads.Add(1) {
			case 1:
				close(taken)
				<-asked
			case 2:
				close(asked)
			}
			return nil
		}}
		c := crime{want: "its own word", quiet: true, do: func(v *villain) {
			v.greet(nil)
			m := hostilePlan([]cbt.Extent{unit})
			m.Leaf = leaf
			v.say(m, message.Extents{Purpose: extentsCandidates, Last: true, Extents: wireExtents([]cbt.Extent{unit})})
			<-taken
			v.say(message.Want{Leaves: 1<<64 - 1})
			v.must(kindPieces, nil)
			v.say(message.Error{Code: message.CodeCancelled, Text: "its own word"})
		}}
		c.againstTarget(t, Side{Volume: g}, true)
	}
}
