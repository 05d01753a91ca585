package failback

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// RefusedError says that a volume was not opened, or a pair not used, because
// something could be overwritten that was not meant to be (L4) or because the
// volume is not one that can be used. Nothing was changed.
type RefusedError struct {
	Volume string // as the caller named it
	Reason string // what is the matter with it
	Next   string // what to do about it

	cause error // of the system, if there was one
	busy  bool  // something else holds the volume: it may be free later
}

// Error returns the volume, the reason and the next step.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("refused %s: %s; %s", e.Volume, e.Reason, e.Next)
}

// Unwrap returns the system's error behind the refusal, so that for example
// errors.Is(err, fs.ErrNotExist) works; nil if there was none.
func (e *RefusedError) Unwrap() error { return e.cause }

const otherTarget = "choose another target"

// refuseOpen turns an error of stat or open into a refusal where the user can do
// something about it, and wraps it otherwise.
func refuseOpen(path string, write bool, err error) error {
	verb := "read"
	if write {
		verb = "write"
	}
	r := &RefusedError{Volume: path, cause: err}
	switch {
	case errors.Is(err, fs.ErrNotExist), err == unix.ENOTDIR:
		r.Reason, r.Next = "it does not exist", "check the path"
		if write {
			r.Next += "; make a new target file with: truncate -s SIZE FILE"
		}
	case err == unix.EROFS:
		r.Reason, r.Next = "its file system is mounted read-only", "remount it read-write, or "+otherTarget
	case err == unix.EPERM:
		r.Reason, r.Next = "the system does not permit to "+verb+" it, whoever asks (immutable?)", "see lsattr; allow it with: chattr -i FILE"
	case errors.Is(err, fs.ErrPermission):
		r.Reason, r.Next = "no permission to "+verb+" it", "run as a user who may "+verb+" it (block devices: root or the group disk)"
	case err == unix.ETXTBSY:
		r.Reason, r.Next = "it is a running program or in use as swap", "stop what uses it, or "+otherTarget
	case err == unix.EBUSY:
		r.busy = true
		r.Reason, r.Next = "something on this machine holds it (a mount in another namespace, device-mapper, md, another failback)",
			"release it (see lsblk, fuser, dmsetup ls), or "+otherTarget
	case err == unix.ENXIO, err == unix.ENODEV, err == unix.ENOMEDIUM:
		r.Reason, r.Next = "there is no device behind it", "attach the device, or insert its medium, first"
	default:
		return fmt.Errorf("open %s: %w", path, err)
	}
	return r
}

// refuseKind refuses everything but regular files and block devices.
func refuseKind(path string, mode uint32) error {
	var is string
	switch mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFBLK:
		return nil
	case unix.S_IFDIR:
		is = "a directory"
	case unix.S_IFCHR:
		is = "a character device"
	case unix.S_IFIFO:
		is = "a pipe"
	case unix.S_IFSOCK:
		is = "a socket"
	default:
		is = "of an unknown kind"
	}
	return &RefusedError{Volume: path, Reason: "it is " + is, Next: "name a regular file or a block device"}
}

const sectorSize = 512 // bytes; every volume is a multiple

// refuseSize refuses sizes that no session can handle. sector is the least a
// device can address, in bytes.
func refuseSize(path string, size, sector int64) error {
	switch {
	case size <= 0:
		return &RefusedError{Volume: path, Reason: "it is empty (0 bytes)",
			Next: "give it a size first (a file: truncate -s SIZE FILE)"}
	case size%sectorSize != 0:
		return &RefusedError{Volume: path,
			Reason: fmt.Sprintf("its size, %d bytes, is not a multiple of %d", size, sectorSize),
			Next:   fmt.Sprintf("bring it to one (a file: truncate -s %d FILE adds zeroes)", (size/sectorSize+1)*sectorSize)}
	case size%sector != 0:
		return &RefusedError{Volume: path,
			Reason: fmt.Sprintf("its size, %d bytes, is not a multiple of its %d-byte sectors, so its end cannot be reached", size, sector),
			Next:   fmt.Sprintf("set it up again with 512-byte sectors, or with a size of %d", size-size%sector)}
	}
	return nil
}
