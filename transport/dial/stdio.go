package dial

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Stdio is this process's standard input and output as one connection: the
// server's end of ssh://. Nothing else may read or write them afterwards.
//
// Where both are pipes or sockets, as sshd makes them, the connection has
// deadlines and Close wakes a blocked Read; else it has neither.
func Stdio() io.ReadWriteCloser { return joined(os.Stdin, os.Stdout) }

func joined(in, out *os.File) io.ReadWriteCloser {
	r, err := pollable(in)
	if err != nil {
		return blockingPair{in, out}
	}
	w, err := pollable(out)
	if err != nil {
		if r.Close() != nil { // it was only a duplicate
			return blockingPair{in, out}
		}
		return blockingPair{in, out}
	}
	return &duplex{r: r, w: w, also: []*os.File{in, out}}
}

// pollable returns a duplicate of f that the runtime waits for without a
// thread. That sets O_NONBLOCK on what f shares with its other holders, so it
// is done only for pipes and sockets: the two ends of a connection are ours.
func pollable(f *os.File) (*os.File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
		return nil, errors.ErrUnsupported
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(os.NewSyscallError("fcntl", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// duplex is a connection made of two files that can be waited for.
type duplex struct {
	r, w *os.File
	also []*os.File // closed with them
}

func (d *duplex) Read(p []byte) (int, error)  { return d.r.Read(p) }
func (d *duplex) Write(p []byte) (int, error) { return d.w.Write(p) }

func (d *duplex) Close() error {
	err := errors.Join(d.w.Close(), d.r.Close())
	for _, f := range d.also {
		err = errors.Join(err, f.Close())
	}
	return err
}

func (d *duplex) SetDeadline(t time.Time) error {
	return errors.Join(d.r.SetReadDeadline(t), d.w.SetWriteDeadline(t))
}
func (d *duplex) SetReadDeadline(t time.Time) error  { return d.r.SetReadDeadline(t) }
func (d *duplex) SetWriteDeadline(t time.Time) error { return d.w.SetWriteDeadline(t) }

// blockingPair is a connection made of two files of any kind.
type blockingPair struct{ in, out *os.File }

func (b blockingPair) Read(p []byte) (int, error)  { return b.in.Read(p) }
func (b blockingPair) Write(p []byte) (int, error) { return b.out.Write(p) }
func (b blockingPair) Close() error                { return errors.Join(b.out.Close(), b.in.Close()) }
