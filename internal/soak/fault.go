package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/failback/failback/cbt"
)

// fault is what goes wrong during a sync.
type fault int

const (
	nothing fault = iota
	killCommand
	killServer
	endCommand
	cutLink
	freezeServer
	flipBit
)

var allFaults = []fault{killCommand, killServer, endCommand, cutLink, freezeServer, flipBit}

func (f fault) String() string {
	return [...]string{"undisturbed", "commands killed", "servers killed", "commands ended", "links cut", "servers frozen", "bits flipped"}[f]
}

// slowLength is how far into a slow sync a fault may come: past a barrier or two.
const slowLength = 15 * time.Second

// strike does it to the sync p that goes on, at a random moment of it.
func (s *soak) strike(f fault, t trip, p *process, candidates []cbt.Extent) error {
	if f == nothing || f == cutLink { // the link cuts itself
		return nil
	}
	length := s.usual
	if t.slow {
		length = slowLength
	}
	select {
	case <-time.After(time.Duration(s.dice.Int64N(int64(length)))):
	case <-p.ended:
	}
	switch f {
	case killCommand:
		return p.signal(syscall.SIGKILL)
	case endCommand:
		return p.signal(syscall.SIGTERM)
	case killServer:
		if err := t.server.signal(syscall.SIGKILL); err != nil {
			return err
		}
		<-t.server.ended
		return t.server.restart()
	case freezeServer:
		if err := t.server.signal(syscall.SIGSTOP); err != nil {
			return err
		}
		time.Sleep(time.Duration(50+s.dice.IntN(400)) * time.Millisecond)
		return t.server.signal(syscall.SIGCONT)
	case flipBit:
		x := candidates[s.dice.IntN(len(candidates))]
		return s.target().flip(x.Off + s.dice.Int64N(x.Len()))
	}
	return fmt.Errorf("no fault %d", f)
}

// live runs do while an application writes to the source.
func (s *soak) live(ctx context.Context, do func() error) error {
	dice := rand.New(rand.NewPCG(s.dice.Uint64(), 2))
	ctx, enough := context.WithCancel(ctx)
	app := make(chan error, 1)
	source := s.source()
	go func() { app <- source.busy(ctx, dice) }()
	err := do()
	enough()
	return errors.Join(err, <-app)
}
