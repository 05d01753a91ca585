package transport

import (
	"os"
	"time"
)

// The steps of a limited writer.
const (
	paceStep  = 5 * time.Millisecond // worth of bytes in one write
	paceSlack = 5 * time.Millisecond // a sleep that was this much too long is made up for
	paceLeast = 1 << 10              // bytes
	paceMost  = 64 << 10             // bytes
)

// pacer spreads writes evenly over time. It saves no credit while nothing is
// written, so that no burst follows a pause.
type pacer struct {
	limit int64     // bytes/s, 0 none
	next  time.Time // when the next step may go
	timer *time.Timer
}

// step is how many of n bytes go at once.
func (p *pacer) step(n int) int {
	if p.limit <= 0 {
		return n
	}
	worth := p.limit / int64(time.Second/paceStep)
	return int(min(int64(n), max(paceLeast, min(worth, paceMost))))
}

// wait waits until n bytes may go, or until closed.
func (p *pacer) wait(n int, closed <-chan struct{}) error {
	if p.limit <= 0 {
		return nil
	}
	now := time.Now()
	if earliest := now.Add(-paceSlack); p.next.Before(earliest) {
		p.next = earliest
		if p.timer == nil { // the first step of all has nothing to make up for
			p.next = now
		}
	}
	cost := time.Duration(float64(n) / float64(p.limit) * float64(time.Second))
	due := p.next.Sub(now)
	p.next = p.next.Add(cost)
	if p.timer == nil {
		p.timer = time.NewTimer(due)
	} else if due > 0 {
		p.timer.Reset(due)
	}
	if due <= 0 {
		return nil
	}
	select {
	case <-p.timer.C:
		return nil
	case <-closed:
		return os.ErrClosed
	}
}
