package throttle

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// The keeper is a process of its own that changes the limit, as its parent orders,
// and takes it away again when the parent ends, in whatever way: then there are no
// more orders. It is in a session of its own, under a name of its own, and not
// killed for its memory. When it is gone without having done that its parent does
// it. So the limit stays only if both are killed at the same moment, until the next
// [Group.Claim].

// keeperName is what the process goes by: killing ours by name does not match it.
const keeperName = "fbk-slow"

// Where the directory of the group and the file of the claim are inherited.
const (
	dirFD   = 3
	claimFD = 4
)

// task is what a keeper is told first.
type task struct {
	Disk string `json:"disk"`
	Dir  string `json:"dir"`  // its name, for errors
	Path string `json:"path"` // of the file of the claim
}

// order is one wish of the parent's.
type order struct {
	Number int   `json:"number"` // from 1
	Limit  int64 `json:"limit"`  // bytes a second
}

// word is the answer to an order, or with number 0 one that nobody asked for. Each
// one says all that is known.
type word struct {
	state
	Number int    `json:"number"`
	Failed string `json:"failed,omitempty"`
	Gone   bool   `json:"gone,omitempty"`  // it failed because the group or the disk is no more
	Why    string `json:"why,omitempty"`   // it ends though its parent does not
	Ended  bool   `json:"ended,omitempty"` // the last: the limit is what it was, unless it failed
}

// maxLine bounds a task, an order and a word, bytes.
const maxLine = 64 << 10

// tell writes one line.
func tell(to io.Writer, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = to.Write(append(line, '\n'))
	return err
}

func lines(r io.Reader) *bufio.Scanner {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 4096), maxLine)
	return s
}

// hear reads the next line into v; io.EOF after the last.
func hear(s *bufio.Scanner, v any) error {
	if !s.Scan() {
		if err := s.Err(); err != nil {
			return err
		}
		return io.EOF
	}
	return json.Unmarshal(s.Bytes(), v)
}

// Serve is the throttle command, the keeper. Nobody but [Group.Begin] runs it. It
// returns when the limit is what it was.
func Serve(stdin io.Reader, stdout io.Writer) error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	defer signal.Stop(signals)
	_ = os.WriteFile("/proc/self/comm", []byte(keeperName), 0)       // without /proc there is no killing by name
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0) // without the right to, it is done without
	in := lines(stdin)
	var t task
	if err := hear(in, &t); err != nil {
		return fmt.Errorf("read task: %w", err)
	}
	held := &claim{file: os.NewFile(claimFD, t.Path), path: t.Path}
	k := &keeper{max: ioMax{dir: os.NewFile(dirFD, t.Dir), disk: t.Disk, claim: held}, parent: stdout}
	now, err := k.max.read()
	if err != nil {
		return fmt.Errorf("read io.max: %w", err)
	}
	k.word.state = state{Former: now, Now: now}
	k.say(0, nil)
	orders := make(chan order)
	go func() {
		defer close(orders)
		for {
			var o order
			if hear(in, &o) != nil {
				return // the parent is gone, or wants no more
			}
			orders <- o
		}
	}()
	k.serve(orders, signals)
	return nil
}

type keeper struct {
	max    ioMax
	word   word
	parent io.Writer
}

// say tells the parent what came of something, and reports whether it is there.
func (k *keeper) say(number int, err error) bool {
	k.word.Number, k.word.Failed, k.word.Gone = number, "", gone(err)
	if err != nil {
		k.word.Failed = err.Error()
	}
	return tell(k.parent, k.word) == nil
}

func (k *keeper) serve(orders <-chan order, signals <-chan os.Signal) {
	for {
		select {
		case o, ok := <-orders:
			if !ok {
				if left, told := k.end(); !told {
					k.alone(left, signals)
				}
				return
			}
			if o.Limit == noLimit {
				k.say(o.Number, k.word.restore(k.max))
			} else {
				k.say(o.Number, k.word.set(k.max, o.Limit))
			}
		case got := <-signals:
			if got != unix.SIGPIPE {
				k.word.Why = "its keeper got a signal: " + got.String()
				_, _ = k.end() // its parent looks after what is left
				return
			}
		}
	}
}

// How long it is tried to take the limit away, and how often.
var restoreTime = 2 * time.Second

const restorePause = 50 * time.Millisecond

// end takes the limit away, and reports whether it is left, and whether the parent was
// there to be told so.
func (k *keeper) end() (left, told bool) {
	err := k.word.restoreAgain(k.max)
	k.word.Ended = true
	return err != nil, k.say(0, err)
}

// alone does what the parent would, were it there: it tries on until the limit is
// away or the machine goes down, and gives the claim up.
func (k *keeper) alone(left bool, signals <-chan os.Signal) {
	for pause := restoreTime / 2; left; pause = min(2*pause, time.Minute) {
		select {
		case <-time.After(pause):
		case got := <-signals:
			if got != unix.SIGPIPE {
				return // it stays noted
			}
		}
		left = k.word.restore(k.max) != nil
	}
	_ = k.max.claim.remove() // or it is an empty file, which harms nobody
}

// restoreAgain is restore, tried until it succeeds or for restoreTime.
func (s *state) restoreAgain(m ioMax, ours ...int64) error {
	late := time.NewTimer(restoreTime)
	defer late.Stop()
	for {
		err := s.restore(m, ours...)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(restorePause):
		case <-late.C:
			return err
		}
	}
}

var errKeeperGone = fmt.Errorf("%w: the process that looks after it is gone", ErrGone)
