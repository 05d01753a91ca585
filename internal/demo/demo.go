// Package demo plays an outage and the way home on one machine: a primary
// volume is replicated, goes on, is cut off with a tail of writes that never
// arrived; work continues at the backup; the primary comes back and is brought
// home. The failback commands in it are the ones a person would type.
//
// Read it in this order: [Run] (the story), stage.go (what a volume, its
// application and its database must do for the story), ext4.go and plain.go
// (the two stages there are), live.go (the way home while the application works), files.go, sqlite.go and reclog.go (the content).
package demo

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
)

// Schema names the JSON form of a [Result].
const Schema = "failback.demo/1"

// MinSize is the smallest volume that content, database and file system fit in, in bytes.
const MinSize = 32 << 20

// Options configures a [Run].
type Options struct {
	Dir   string // where files are made; default a new directory in os.TempDir, removed at the end
	Size  int64  // bytes of each volume; default 512 MiB, at least MinSize, a multiple of 1 MiB
	Plain bool   // plain files although loop devices could be used

	Out io.Writer // the story
	// Command runs one failback command in this process and returns its exit code.
	Command func(ctx context.Context, args []string, stdout, stderr io.Writer) int
}

// Result is the story in figures. Bytes, unless a name says otherwise.
type Result struct {
	Schema   string `json:"schema"`
	Result   string `json:"result"` // "proven"
	Stage    string `json:"stage"`  // what the volumes are
	Content  string `json:"content"`
	Database string `json:"database"`

	VolumeBytes      int64   `json:"volume_bytes"`
	FirstRung        string  `json:"first_rung"`
	FirstWireBytes   int64   `json:"first_wire_bytes"`
	FirstSeconds     float64 `json:"first_seconds"`
	TailBytes        int64   `json:"tail_bytes"`        // written at the primary, never at the backup
	TailTransactions int64   `json:"tail_transactions"` // so many were lost with the primary
	BackupBytes      int64   `json:"backup_bytes"`      // written at the backup meanwhile

	Rung           string  `json:"rung"`
	DivergentBytes int64   `json:"divergent_bytes"`
	RawBytes       int64   `json:"raw_bytes"`
	WireBytes      int64   `json:"wire_bytes"` // both ways
	Seconds        float64 `json:"seconds"`

	// Of a way home while the application works; else 0.
	Tracker          string  `json:"tracker"` // what recorded the writes to the backup: "kernel", "none"
	Rounds           int     `json:"rounds"`
	PauseMS          float64 `json:"pause_ms"` // that the application waited, and was predicted to
	PredictedMS      float64 `json:"predicted_pause_ms"`
	LiveTransactions int64   `json:"live_transactions"` // committed meanwhile
	SwitchRung       string  `json:"switch_rung"`
	SwitchBytes      int64   `json:"switch_bytes"`   // looked at after the application had stopped
	SwitchSeconds    float64 `json:"switch_seconds"` // from then on

	FullCopyWireBytes int64   `json:"full_copy_wire_bytes"`
	FullCopySeconds   float64 `json:"full_copy_seconds"`

	LastTransaction int64 `json:"last_transaction"` // committed at the backup and found at home
}

// play is one run of the story.
type play struct {
	Options
	story
	stage
	result  Result
	synced  string // digest file of what both sides held when they were last equal
	arrived int64  // last transaction both sides had
	live    bool   // the backup is tracked
	state   string // where failback keeps what it has to know, if so
	app     application
	cleanup []func(context.Context) error
}

// Run plays the story. Whatever it has made is gone when it returns, also after
// an error or when ctx ends.
func Run(ctx context.Context, o Options) (r *Result, err error) {
	if o.Size == 0 {
		o.Size = 512 << 20
	}
	if o.Size < MinSize || o.Size%(1<<20) != 0 {
		return nil, fmt.Errorf("size of %d bytes: at least %d, a multiple of 1 MiB", o.Size, int64(MinSize))
	}
	p := &play{Options: o, story: story{w: o.Out}}
	// What was mounted and attached is taken down although ctx may have ended.
	defer func() { err = p.leave(context.WithoutCancel(ctx), err) }()
	if err := p.enter(ctx); err != nil {
		return nil, err
	}
	acts := []struct {
		title string
		play  func(context.Context) error
	}{
		{"The primary works, and the backup is made equal to it", p.replicate},
		{"The primary goes on, and is cut off: its last writes never arrive", p.lose},
		{"Failover: the application runs at the backup", p.failover},
		{"The primary is back: what had it written that nobody else has?", p.tail},
		{"The way home: only what differs", p.comeHome},
		{"Is it right?", p.prove},
	}
	for i, act := range acts {
		p.title(i+1, act.title)
		if err := act.play(ctx); err != nil {
			return nil, fmt.Errorf("act %d: %w", i+1, err)
		}
	}
	p.result.Result = "proven"
	p.figures(&p.result)
	return &p.result, nil
}

// enter makes the directory and sets the stage.
func (p *play) enter(ctx context.Context) error {
	if p.Dir == "" {
		dir, err := os.MkdirTemp("", "failback-demo-")
		if err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		p.Dir = dir
		p.later(func(context.Context) error { return os.RemoveAll(dir) })
	} else if err := os.MkdirAll(p.Dir, 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	stage, why, err := p.choose(ctx)
	if err != nil {
		return err
	}
	p.stage = stage
	p.synced = p.file("synced.fbt")
	p.result = Result{Schema: Schema, Stage: stage.words, Content: stage.content, Database: stage.database, VolumeBytes: p.Size}
	p.say("Two volumes of %s: %s%s.", size(p.Size), stage.words, why)
	p.say("Content: %s. Database: %s.", stage.content, stage.database)
	return nil
}

// file names a file of the demo, which is removed at the end.
func (p *play) file(name string) string {
	path := filepath.Join(p.Dir, name)
	p.later(func(context.Context) error {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return err
		}
		return nil
	})
	return path
}

// later notes something to take down at the end. The last noted comes first.
func (p *play) later(f func(context.Context) error) { p.cleanup = append(p.cleanup, f) }

// leave takes everything down and says what could not be.
func (p *play) leave(ctx context.Context, err error) error {
	for i := len(p.cleanup) - 1; i >= 0; i-- {
		if e := p.cleanup[i](ctx); e != nil {
			p.say("Clean up: %v", e)
			if err == nil {
				err = fmt.Errorf("clean up: %w", e)
			}
		}
	}
	return err
}

func (p *play) replicate(ctx context.Context) error {
	app, err := p.primary.start(ctx)
	if err != nil {
		return err
	}
	filled, err := app.fill(ctx)
	if err != nil {
		return fmt.Errorf("fill the primary: %w", err)
	}
	if p.arrived, err = p.load(ctx, app, nil); err != nil {
		return err
	}
	if err := p.primary.stop(ctx); err != nil {
		return err
	}
	p.say("The primary holds %s, and a database with %d transactions.", filled, p.arrived)
	r, err := p.sync(ctx, p.primary.path(), p.backup.path())
	if err != nil {
		return err
	}
	p.result.FirstRung, p.result.FirstWireBytes, p.result.FirstSeconds = r.Rung, r.wire(), r.Seconds.Total
	p.say("A digest of it is kept: %s of hashes.", size(p.Size/tailLeaf*32))
	_, err = p.failback(ctx, 0, "digest", "--leaf", "4KiB", "-o", p.synced, p.backup.path())
	return err
}

// tailLeaf is the grain in which the tail is told, in bytes.
const tailLeaf = 4 << 10

func (p *play) lose(ctx context.Context) error {
	app, err := p.primary.start(ctx)
	if err != nil {
		return err
	}
	last, err := p.load(ctx, app, app.touch)
	if err != nil {
		return err
	}
	p.result.TailTransactions = last - p.arrived
	how, err := p.primary.crash(ctx)
	if err != nil {
		return err
	}
	p.say("Transactions %d to %d were committed at the primary, then: %s.", p.arrived+1, last, how)
	return nil
}

func (p *play) failover(ctx context.Context) error {
	if err := p.tracker(ctx); err != nil {
		return err
	}
	app, err := p.backup.start(ctx)
	if err != nil {
		return err
	}
	p.app = app
	found, err := app.database().check(ctx)
	if err != nil {
		return fmt.Errorf("check the database at the backup: %w", err)
	}
	if found != p.arrived {
		return fmt.Errorf("the backup's database ends with transaction %d, not %d", found, p.arrived)
	}
	p.say("The backup's database is whole and ends with transaction %d.", found)
	last, err := p.load(ctx, app, app.rework)
	if err != nil {
		return err
	}
	p.result.LastTransaction = last
	if !p.live {
		if err := p.backup.stop(ctx); err != nil {
			return err
		}
	}
	p.say("Much of the content has been worked on there; the database is at transaction %d.", last)
	if !p.live {
		p.say("The application stops for the way home.")
	}
	return nil
}

// load lets the database work while f does, and returns its last transaction.
func (p *play) load(ctx context.Context, app application, f func(context.Context) error) (last int64, err error) {
	g, ctx := errgroup.WithContext(ctx)
	enough := make(chan struct{})
	g.Go(func() (err error) {
		last, err = app.database().load(ctx, enough)
		return err
	})
	g.Go(func() error {
		defer close(enough)
		if f == nil {
			return nil
		}
		return f(ctx)
	})
	err = g.Wait()
	return last, err
}

func (p *play) tail(ctx context.Context) error {
	r, err := p.failback(ctx, 1, "diff", "--json", p.primary.path(), p.synced)
	if err != nil {
		return err
	}
	p.result.TailBytes = r.DivergentBytes
	p.say("The tail: %s in %d extents were written at the primary and reached nobody.", size(r.DivergentBytes), len(r.Extents))
	if p.live {
		p.result.BackupBytes, err = p.recorded(ctx)
	} else {
		r, err = p.failback(ctx, 1, "diff", "--json", p.backup.path(), p.synced)
		if err == nil {
			p.result.BackupBytes = r.DivergentBytes
		}
	}
	if err == nil {
		p.say("At the backup %s have changed since both were equal.", size(p.result.BackupBytes))
	}
	return err
}

func (p *play) comeHome(ctx context.Context) error {
	home := func(ctx context.Context) (*report, error) { return p.sync(ctx, p.backup.path(), p.primary.path()) }
	if p.live {
		home = p.liveHome
	}
	r, err := home(ctx)
	if err != nil {
		return err
	}
	p.result.Rung, p.result.DivergentBytes, p.result.RawBytes = r.Rung, r.DivergentBytes, r.RawBytes
	p.result.WireBytes, p.result.Seconds = r.wire(), r.Seconds.Total
	scratch := p.file("full-copy.img")
	if err := makeFile(scratch, p.Size); err != nil {
		return err
	}
	p.say("To hold it against: the same volume copied whole, but for its zeroes, to a third file.")
	full, err := p.failback(ctx, 0, "sync", "--json", "--rung", "full", "--codec", "none", p.backup.path(), scratch)
	if err != nil {
		return err
	}
	p.result.FullCopyWireBytes, p.result.FullCopySeconds = full.wire(), full.Seconds.Total
	return os.Remove(scratch)
}

func (p *play) prove(ctx context.Context) error {
	if _, err := p.failback(ctx, 0, "verify", p.backup.path(), p.primary.path()); err != nil {
		return err
	}
	examined, err := p.primary.examine(ctx)
	if err != nil {
		return err
	}
	p.say("%s", examined)
	app, err := p.primary.start(ctx)
	if err != nil {
		return err
	}
	last, err := app.database().check(ctx)
	if err != nil {
		return fmt.Errorf("check the database at home: %w", err)
	}
	if last != p.result.LastTransaction {
		return fmt.Errorf("the database at home ends with transaction %d, the backup's with %d", last, p.result.LastTransaction)
	}
	p.say("The database at home is whole and ends with transaction %d, the last one of the backup.", last)
	begin := time.Now()
	if last, err = p.load(ctx, app, nil); err != nil {
		return err
	}
	p.say("The application runs at the primary again: transaction %d, %.1f s later.", last, time.Since(begin).Seconds())
	return p.primary.stop(ctx)
}
