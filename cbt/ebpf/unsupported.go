package ebpf

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ErrUnsupported is what every [UnsupportedError] is.
var ErrUnsupported = errors.New("not supported by this kernel")

// UnsupportedError says what this kernel, or its set-up, lacks.
type UnsupportedError struct {
	Feature string // in words
	Since   string // the Linux version that has it, "" where it is no matter of that
	Config  string // what it must be configured with, "" if nothing special
	Err     error  // what the kernel said, may be nil
}

// Error returns the feature and what it needs.
func (e *UnsupportedError) Error() string {
	s := e.Feature + ": not supported"
	switch {
	case e.Since != "" && e.Config != "":
		s += fmt.Sprintf(" (needs Linux %s with %s)", e.Since, e.Config)
	case e.Since != "":
		s += fmt.Sprintf(" (needs Linux %s)", e.Since)
	case e.Config != "":
		s += fmt.Sprintf(" (needs %s)", e.Config)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Is reports whether target is [ErrUnsupported].
func (e *UnsupportedError) Is(target error) bool { return target == ErrUnsupported }

// Unwrap returns what the kernel said.
func (e *UnsupportedError) Unwrap() error { return e.Err }

// RefusedError says why a device cannot be tracked at all.
type RefusedError struct {
	Device string
	Reason string
	Next   string // what to do, may be ""
}

// Error returns the device and the reason.
func (e *RefusedError) Error() string { return fmt.Sprintf("track %s: %s", e.Device, e.Reason) }

// explainLoad turns what the kernel says to a program into what is missing.
func explainLoad(err error) error {
	switch {
	case errors.Is(err, unix.EPERM) || errors.Is(err, os.ErrPermission):
		return fmt.Errorf("load kernel programs: %w; this takes root, or CAP_BPF with CAP_PERFMON and CAP_SYS_ADMIN, and a kernel that is not locked down (see /sys/kernel/security/lockdown)", err)
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, os.ErrNotExist):
		for _, f := range Probe("") {
			if f.Support == No && f.Required {
				return f.unsupported(err)
			}
		}
	}
	return fmt.Errorf("load kernel programs: %w", err)
}
