package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// A Server is a process that a [Case] needs while it runs: the other side of a session. Its figures are taken apart.
type Server struct {
	Args   []string
	Socket string // path of the unix socket that is there once it listens; removed before
	Line   string // or a text that it prints then
	Keep   bool   // ends by itself with its client; else it is sent SIGTERM
}

// serverPatience is how long a server may take to listen, and to end when told.
const serverPatience = 10 * time.Second

func (s *Server) start(ctx context.Context) (*process, error) {
	if s.Socket != "" {
		if err := os.Remove(s.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	p, err := startProcess(ctx, s.Args)
	if err != nil {
		return nil, err
	}
	if err := s.listening(ctx, p); err != nil {
		_, stopErr := s.stop(p)
		return nil, errors.Join(err, stopErr)
	}
	return p, nil
}

// listening waits until the server can be reached. Nothing tells when a socket appears, so it looks.
func (s *Server) listening(ctx context.Context, p *process) error {
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	end := time.After(serverPatience)
	for {
		if s.Socket != "" {
			if _, err := os.Stat(s.Socket); err == nil {
				return nil
			}
		}
		if s.Line != "" && bytes.Contains(append(p.out.Bytes(), p.err.Bytes()...), []byte(s.Line)) {
			return nil
		}
		if s.Socket == "" && s.Line == "" {
			return nil
		}
		select {
		case <-look.C:
		case <-end:
			return fmt.Errorf("start %s: not listening after %v: %s", s.Args[0], serverPatience, complaint(p.err.Bytes()))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// stop ends the server and returns its figures. That it was told to end is no error.
func (s *Server) stop(p *process) (Figures, error) {
	if !s.Keep {
		if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return Figures{}, fmt.Errorf("stop %s: %w", s.Args[0], err)
		}
	}
	hard := time.AfterFunc(serverPatience, func() { _ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) })
	defer hard.Stop()
	f, err := p.wait()
	if !s.Keep {
		err = nil
	}
	return f, err
}
