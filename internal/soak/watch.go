package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sample is what a server holds while it has nothing to do.
type sample struct {
	at          time.Time
	resident    int64 // bytes
	descriptors int
	threads     int
}

func (s sample) String() string {
	return fmt.Sprintf("%.1f MiB, %d descriptors, %d threads", float64(s.resident)/(1<<20), s.descriptors, s.threads)
}

// watch collects samples, and compares the last quarter with the second: the
// first may be spent growing to the size that the work needs.
type watch struct{ samples []sample }

// How much more the last quarter may have than the second.
const (
	residentShare = 0.10    // of the second's mean
	residentSlack = 4 << 20 // bytes
	settled       = 3 * time.Second
)

func (w *watch) last() sample {
	if len(w.samples) == 0 {
		return sample{}
	}
	return w.samples[len(w.samples)-1]
}

// sample waits a moment for connections to be closed, and notes what there is.
func (w *watch) sample(v *server) error {
	now, err := measure(v.cmd.Process.Pid)
	if err != nil {
		return fmt.Errorf("look at the old server: %w (it said:\n%s)", err, v.said.String())
	}
	least := now.descriptors
	for _, s := range w.samples {
		least = min(least, s.descriptors)
	}
	deadline := time.Now().Add(settled)
	for now.descriptors > least && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
		if now, err = measure(v.cmd.Process.Pid); err != nil {
			return err
		}
	}
	w.samples = append(w.samples, now)
	return nil
}

func measure(pid int) (sample, error) {
	s := sample{at: time.Now()}
	dir := "/proc/" + strconv.Itoa(pid)
	open, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return s, err
	}
	s.descriptors = len(open)
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		switch name {
		case "VmRSS":
			kib, err := strconv.ParseInt(fields[0], 10, 64)
			if err != nil {
				return s, err
			}
			s.resident = kib << 10
		case "Threads":
			if s.threads, err = strconv.Atoi(fields[0]); err != nil {
				return s, err
			}
		}
	}
	return s, nil
}

// quarter is the mean of what is resident and the most descriptors of the n-th
// quarter, from 0.
func (w *watch) quarter(n int) (resident int64, descriptors int) {
	part := w.samples[len(w.samples)*n/4 : len(w.samples)*(n+1)/4]
	for _, s := range part {
		resident += s.resident / int64(len(part))
		descriptors = max(descriptors, s.descriptors)
	}
	return resident, descriptors
}

// verdict prints the figures and says whether they are flat.
func (w *watch) verdict() error {
	if len(w.samples) < 8 {
		fmt.Println("soak: too short to say whether the server is flat")
		return nil
	}
	most := slices.MaxFunc(w.samples, func(a, b sample) int { return int(a.resident - b.resident) })
	second, secondFiles := w.quarter(1)
	last, lastFiles := w.quarter(3)
	fmt.Printf("soak: the old server, idle: resident %.1f MiB in the second quarter, %.1f MiB in the last, at most %.1f MiB; descriptors %d and %d\n",
		float64(second)/(1<<20), float64(last)/(1<<20), float64(most.resident)/(1<<20), secondFiles, lastFiles)
	var err error
	if float64(last) > float64(second)*(1+residentShare)+residentSlack {
		err = errors.New("the old server's memory grows")
	}
	if lastFiles > secondFiles {
		err = errors.Join(err, errors.New("the old server's descriptors become more"))
	}
	return err
}
