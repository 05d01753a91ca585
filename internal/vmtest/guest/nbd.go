package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// The kernel's NBD client, and a server of it in memory. See
// Documentation/admin-guide/blockdev/nbd.rst in Linux, and doc/proto.md of nbd.
//
//	request:                            answer:
//	off size field                      off size field
//	  0    4 magic                        0    4 magic
//	  4    2 flags                        4    4 error
//	  6    2 command                      8    8 cookie
//	  8    8 cookie                      16      data, of a read
//	 16    8 offset, bytes
//	 24    4 length, bytes
//	 28      data, of a write
const (
	nbdRequest = 0x25609513
	nbdAnswer  = 0x67446698

	nbdRead, nbdWrite, nbdBye, nbdFlush, nbdTrim, nbdZeroes = 0, 1, 2, 3, 4, 6

	nbdSetSock, nbdSetBlock, nbdDoIt, nbdClearSock   = 0xab00, 0xab01, 0xab03, 0xab04
	nbdSetBlocks, nbdDisconnect, nbdSetFlags         = 0xab07, 0xab08, 0xab0a
	nbdHasFlags, nbdHasFlush, nbdHasTrim, nbdHasZero = 1, 1 << 2, 1 << 5, 1 << 6
)

// nbdServe answers requests to memory until it is told to end.
func nbdServe(link *os.File, memory []byte) error {
	be := binary.BigEndian
	var head [28]byte
	for {
		if _, err := io.ReadFull(link, head[:]); err != nil {
			return err
		}
		off, n := be.Uint64(head[16:]), uint64(be.Uint32(head[24:]))
		size := uint64(len(memory))
		if be.Uint32(head[:]) != nbdRequest || n > size || off > size-n {
			return fmt.Errorf("request %x for a disk of %d bytes", head, size)
		}
		answer := make([]byte, 16)
		be.PutUint32(answer, nbdAnswer)
		copy(answer[8:], head[8:16])
		switch part := memory[off : off+n]; be.Uint16(head[6:]) {
		case nbdRead:
			answer = append(answer, part...)
		case nbdWrite:
			if _, err := io.ReadFull(link, part); err != nil {
				return err
			}
		case nbdTrim, nbdZeroes:
			clear(part)
		case nbdBye:
			return nil
		}
		if _, err := link.Write(answer); err != nil {
			return err
		}
	}
}

// nbdCreate connects a disk of the kernel to a server here.
func nbdCreate() (string, func() error, error) {
	const path, block = "/dev/nbd0", 4096
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return "", nil, err
	}
	disk, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", nil, err
	}
	theirs, ours := os.NewFile(uintptr(ends[0]), "nbd client"), os.NewFile(uintptr(ends[1]), "nbd server")
	for _, c := range []struct{ request, arg uintptr }{
		{nbdSetBlock, block}, {nbdSetBlocks, rigSize / block}, {nbdSetFlags, nbdHasFlags | nbdHasFlush | nbdHasTrim | nbdHasZero}, {nbdSetSock, theirs.Fd()},
	} {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, disk.Fd(), c.request, c.arg); errno != 0 {
			return "", nil, fmt.Errorf("set up %s: request %#x: %w", path, c.request, errno)
		}
	}
	served, client := make(chan error, 1), make(chan error, 1)
	go func() { served <- nbdServe(ours, make([]byte, rigSize)) }()
	go func() { client <- ioctl(disk, nbdDoIt, nil) }() // ends at nbdDisconnect
	end := func() error {
		// The client ends when the server has hung up.
		err := errors.Join(ioctl(disk, nbdDisconnect, nil), <-served, ours.Close(), <-client)
		return errors.Join(err, ioctl(disk, nbdClearSock, nil), disk.Close(), theirs.Close())
	}
	return path, end, until(path, func() bool { return sectorsOf(path) == rigSize/sector })
}
