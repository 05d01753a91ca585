package cli

import (
	"bytes"
	"testing"

	"github.com/failback/failback"
)

func TestSyncSummary(t *testing.T) {
	root := "abcd"
	r := &failback.Report{
		Result: failback.ResultEqual, Rung: "exact", Reason: "because", Source: "a", Target: "b", VolumeBytes: 1 << 30, CandidateBytes: 20 << 20,
		DivergentBytes: 10 << 20, ZeroBytes: 1 << 20, RawBytes: 9 << 20, WireBytesOut: 4 << 20, WireBytesIn: 4096, SourceReadBytes: 20 << 20,
		TargetReadBytes: 20 << 20, TargetWrittenBytes: 10 << 20, TargetVerifiedBytes: 10 << 20, Root: &root, Verified: "changed",
		Codec: map[string]int64{"zstd": 8 << 20, "none": 1 << 20, "lz4": 0}, Seconds: failback.Seconds{Transfer: 1.25, Total: 1.5, Flush: 0.25},
	}
	var out bytes.Buffer
	a := &app{stdout: &out}
	if err := a.showSync(r, outputFlags{}); err != nil {
		t.Fatal(err)
	}
	const want = `source     a
target     b
result     equal, what was written is proven by reading it back
rung       exact: because
compared   20.0 MiB of 1.0 GiB
differing  10.0 MiB (0.98% of the volume), 1.0 MiB of it zeroes
sent       9.0 MiB as 4.0 MiB on the link, 4.0 KiB back; none 1.0 MiB; zstd 8.0 MiB
source i/o 20.0 MiB read
target i/o 20.0 MiB read, 10.0 MiB written, 10.0 MiB read back
time       1.5 s: plan 0.00, transfer 1.25, flush 0.25, verify 0.00, seal 0.00
root       abcd
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
	for result, words := range map[string]string{failback.ResultPlanned: "dry run, nothing was written", failback.ResultEqual: "equal, proven over the whole of both"} {
		r.Result, r.Verified = result, "full"
		if got := syncResult(r); got != words {
			t.Errorf("%s: %q, want %q", result, got, words)
		}
	}
}
