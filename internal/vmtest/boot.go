package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
)

// What the guest prints begins with mark; the line with verdict is its last.
const (
	mark    = "vmtest: "
	verdict = "vmtest: failures "
)

// boot runs the guest to its end, prints what it says, and returns an error if
// not all went well in it.
func (s *settings) boot(ctx context.Context, initrd string, disks []string) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	loglevel := 3
	if s.console {
		loglevel = 6
	}
	memory := "" // that the guest is to take for persistent
	if s.Part == tracker {
		memory = fmt.Sprintf(" memmap=%dM!%dM", diskSize>>20, s.memory*3/4)
	}
	c := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-accel", s.accel, "-m", strconv.Itoa(s.memory), "-smp", "2",
		"-display", "none", "-no-reboot", "-nodefaults", "-no-user-config",
		"-kernel", s.kernel.image, "-initrd", initrd, "-serial", "stdio",
		"-append", fmt.Sprintf("console=ttyS0 panic=-1 quiet loglevel=%d random.trust_cpu=on mitigations=off nowatchdog tsc=unstable%s", loglevel, memory))
	c.Args = append(c.Args, disks...)
	if strings.HasPrefix(s.accel, "tcg") {
		// The emulation of cmpxchg16b on several threads now and then ends a guest early.
		c.Args = append(c.Args, "-cpu", "max,-cx16")
	}
	said, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	var complaints strings.Builder
	c.Stderr = &complaints
	if err := c.Start(); err != nil {
		return err
	}
	failures, rest := s.listen(said)
	err = c.Wait()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the guest was stopped: %w", context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("qemu-system-x86_64: %w: %s", err, complaints.String())
	case failures < 0:
		return fmt.Errorf("the guest ended before its time; its kernel said:\n%s", rest)
	case failures > 0:
		return fmt.Errorf("%d scenarios failed", failures)
	}
	return nil
}

// listen prints what the guest says and returns the number of failures it told,
// -1 if it told none, and the end of what its kernel said.
func (s *settings) listen(r io.Reader) (failures int, rest string) {
	failures = -1
	var kernel []string
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		line = strings.TrimRight(line, "\r\n")
		// The kernel may have put something before it, without a line's end.
		at := strings.Index(line, mark)
		switch {
		case at >= 0 && strings.HasPrefix(line[at:], verdict):
			if n, err := strconv.Atoi(line[at+len(verdict):]); err == nil {
				failures = n
			}
		case at >= 0:
			fmt.Println(line[at:])
		case line != "":
			if kernel = append(kernel, line); len(kernel) > 40 {
				kernel = kernel[1:]
			}
			if s.console {
				fmt.Println("kernel: " + line)
			}
		}
		if err != nil {
			return failures, strings.Join(kernel, "\n")
		}
	}
}
