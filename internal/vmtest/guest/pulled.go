package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// pulled takes a SCSI disk away from under a session, source or target, puts it
// back with what it held, and runs the session again.
func (g *guest) pulled(source bool) (string, error) {
	p := g.newPair()
	other, err := dmCreate("other", linear(sourceRAM, 0, volumeSize))
	if err != nil {
		return "", err
	}
	did, err := g.pull(p, other, source)
	return did, errors.Join(err, dmRemove("other"))
}

func (g *guest) pull(p pair, other string, source bool) (string, error) {
	disk, err := scsiDisk()
	if err != nil {
		return "", err
	}
	from, to := other, disk
	if source {
		from, to = disk, other
	}
	if err := errors.Join(store(from, p.new), store(to, p.old)); err != nil {
		return "", err
	}
	c := exec.Command("/failback", "sync", "--codec", "none", "--limit", "1MiB/s", "--window", "2MiB", from, to)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	before := written(to)
	if err := c.Start(); err != nil {
		return "", err
	}
	err = until("data to arrive", func() bool { return written(to) > before })
	if err == nil {
		err = os.WriteFile("/sys/block/"+filepath.Base(disk)+"/device/delete", []byte("1"), 0)
	}
	ended := c.Wait() // the code is what counts
	if err != nil {
		return "", errors.Join(err, ended)
	}
	said := stderr.String()
	if code := c.ProcessState.ExitCode(); code != 3 || !strings.Contains(said, disk) || !strings.Contains(said, "next:") {
		return "", fmt.Errorf("exit code %d: %s; want 3, the name of %s and a next step", code, said, disk)
	}
	again, err := scsiDisk()
	if err != nil {
		return "", err
	}
	if source {
		from = again
	} else {
		to = again
	}
	if err := g.must("sync", from, to); err != nil {
		return "", err
	}
	return "told: " + line(said, disk), holds(to, p.new, "the next run said that the volumes are equal; they are not")
}

// scsiDisk looks for the one disk, and has it looked for if there is none.
func scsiDisk() (string, error) {
	disk := ""
	find := func() bool {
		found, err := filepath.Glob("/sys/block/sd*")
		if err != nil || len(found) != 1 {
			return false
		}
		disk = "/dev/" + filepath.Base(found[0])
		_, err = os.Stat(disk)
		return err == nil
	}
	if find() {
		return disk, nil
	}
	hosts, err := filepath.Glob("/sys/class/scsi_host/*/scan")
	if err != nil || len(hosts) == 0 {
		return "", fmt.Errorf("no SCSI host (%w)", err)
	}
	for _, h := range hosts {
		if err := os.WriteFile(h, []byte("- - -"), 0); err != nil {
			return "", err
		}
	}
	return disk, until("a SCSI disk", find)
}

// written counts the sectors that were written to a device.
func written(path string) (sectors int64) {
	stat, err := os.ReadFile("/sys/block/" + filepath.Base(path) + "/stat")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(stat))
	if len(fields) > 6 {
		_, _ = fmt.Sscan(fields[6], &sectors) // stays 0
	}
	return sectors
}
