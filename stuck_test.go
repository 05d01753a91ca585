package failback

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// TestStuckVolumeIsNamed: who cancels a session that a volume keeps is told which
// one, and what it does not come back from.
func TestStuckVolumeIsNamed(t *testing.T) {
	for kind, words := range map[string]string{
		"read":  "src: a read of it has not come back yet, and the session can only end when it has",
		"write": "dst: a write to it has not come back yet",
		"flush": "dst: a flush of it has not come back yet",
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			hangs, end := make(chan struct{}, 1), make(chan struct{})
			hang := func(int64) error {
				select {
				case hangs <- struct{}{}:
				default:
				}
				<-end
				return nil
			}
			v := &faulty{memory: randomVolume(1, 1<<20)}
			*map[string]*func(int64) error{"read": &v.read, "write": &v.write, "flush": &v.sync}[kind] = hang
			src, dst := Side{Volume: randomVolume(2, 1<<20), Name: "src"}, Side{Volume: v, Name: "dst"}
			if kind == "read" {
				src.Volume, dst.Volume = v, src.Volume
			}
			noted, ended := make(chan string, 9), make(chan error, 1)
			go func() {
				_, err := Sync(ctx, src, dst, Options{Events: Events{Note: func(s string) { noted <- s }}})
				ended <- err
			}()
			<-hangs
			cancel()
			select {
			case s := <-noted:
				if !strings.Contains(s, words) {
					t.Errorf("told %q, want %q", s, words)
				}
			case <-time.After(10 * partingTime):
				t.Error("nobody is told")
			case err := <-ended:
				t.Errorf("the session has ended before its volume: %v", err)
			}
			close(end)
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			if len(noted) > 0 {
				t.Errorf("told again: %q", <-noted)
			}
		})
	}
}
