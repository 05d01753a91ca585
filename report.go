package failback

import (
	"encoding/json"
	"time"

	"github.com/failback/failback/cbt"
)

// The schema names of the JSON forms of a [Report]. They change only with their meaning.
const (
	schemaSync    = "failback.sync/1"
	schemaCompare = "failback.compare/1"
	schemaDigest  = "failback.digest/1"
)

// Report is what a session did. Figures are counted where the bytes move.
type Report struct {
	Schema string `json:"schema"`
	Result string `json:"result"` // "equal" (sync: made equal and proven), "different", "planned" (dry run)
	Rung   string `json:"rung"`
	Reason string `json:"reason"`
	Source string `json:"source"`
	Target string `json:"target"`

	VolumeBytes    int64 `json:"volume_bytes"`
	CandidateBytes int64 `json:"candidate_bytes"`
	DivergentBytes int64 `json:"divergent_bytes"`
	RawBytes       int64 `json:"raw_bytes"`  // payload before compression
	ZeroBytes      int64 `json:"zero_bytes"` // made zero without payload

	WireBytesOut int64 `json:"wire_bytes_out"` // source to target, as written to the link
	WireBytesIn  int64 `json:"wire_bytes_in"`  // target to source

	SourceReadBytes     int64 `json:"source_read_bytes"`
	TargetReadBytes     int64 `json:"target_read_bytes"` // to compare
	TargetWrittenBytes  int64 `json:"target_written_bytes"`
	TargetVerifiedBytes int64 `json:"target_verified_bytes"` // read back from the medium to verify

	Root       *string          `json:"root"` // of the source, and the target when equal; null when no tree was made
	Verified   string           `json:"verified"`
	Codec      map[string]int64 `json:"codec"` // payload bytes by codec
	RoundTrips int              `json:"round_trips"`

	// Attempts is how often a Sync was begun. The figures are of the last one.
	Attempts int `json:"attempts"`
	// ResumedFrom is up to which offset an interrupted session had come, in
	// bytes: nothing below it was looked at again.
	ResumedFrom int64 `json:"resumed_from"`
	// UndoBytes is how much of what was overwritten was saved before.
	UndoBytes int64 `json:"undo_bytes"`
	// UnsavedBytes is how much was overwritten without, because no more could be
	// saved: the undo log has a gap.
	UnsavedBytes int64 `json:"unsaved_bytes"`
	// StagedBytes is how much was gathered beside the target, and applied when it
	// was whole.
	StagedBytes int64   `json:"staged_bytes"`
	Seconds     Seconds `json:"seconds"`
	// Doubt is why nothing vouches for all of a volume whose stage was applied (see
	// Side.ApplyStage), empty if something does.
	Doubt string `json:"-"`
	// Live is what a session did whose source was written meanwhile, else nil.
	Live *LiveReport `json:"live,omitempty"`

	// Extents are the divergent ranges a comparison found, in order. A [Sync] leaves it empty.
	Extents []cbt.Extent `json:"-"`
	// Coarse says that there were too many extents to keep: Extents covers
	// them, and equal ranges between them.
	Coarse bool `json:"extents_coarse,omitempty"`
}

// Seconds is where a session's time went. Transfer is comparing and sending,
// which overlap; Flush is making the last of it durable and reading it back. Apply,
// which is a part of Seal, is making of the target what was staged.
type Seconds struct {
	Plan     float64 `json:"plan"`
	Transfer float64 `json:"transfer"`
	Flush    float64 `json:"flush"`
	Verify   float64 `json:"verify"`
	Seal     float64 `json:"seal"`
	Apply    float64 `json:"apply"`
	Total    float64 `json:"total"`
}

// Equal reports whether the session ended with both sides equal.
func (r *Report) Equal() bool { return r.Result == ResultEqual }

// The values of Report.Result.
const (
	ResultEqual     = "equal"
	ResultDifferent = "different"
	ResultPlanned   = "planned"

	resultDoubt = "in doubt" // a stage is applied, and nothing vouches for the rest
)

// wireReport is the form in which a report goes to the peer: with the extents.
type wireReport struct {
	Report
	Extents []cbt.Extent `json:"extents,omitempty"`
}

func (r *Report) encode() ([]byte, error) {
	return json.Marshal(wireReport{Report: *r, Extents: r.Extents})
}

func since(t time.Time) float64 { return time.Since(t).Seconds() }
