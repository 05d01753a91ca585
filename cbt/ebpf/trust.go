package ebpf

import (
	"errors"
	"fmt"
	"os"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/internal/sysfs"
)

// doubt returns why nothing can be vouched for from now on, "" if all is well.
// Everything but the counters is asked of the system at each call.
func (t *Tracker) doubt() string {
	if why := t.deviceDoubt(); why != "" {
		return why
	}
	for _, name := range sharedPrograms {
		if _, err := os.Stat(t.pins.link(name)); err != nil {
			return detached(name)
		}
	}
	for _, name := range sessionPrograms {
		if _, err := os.Stat(t.sessionDir() + "/" + name); err != nil && t.armed() {
			return detached(name)
		}
	}
	switch missed, err := t.missed(); {
	case err != nil:
		return err.Error()
	case missed != t.rec.get(offBaseMissed):
		return fmt.Sprintf("%d writes came in an interrupt of the program that marks them, and passed it by", missed-t.rec.get(offBaseMissed))
	}
	if n := t.rec.get(offLost); n > 0 {
		return fmt.Sprintf("%d writes could not be marked", n)
	}
	if n := t.rec.get(offPassthrough) - t.rec.get(offBasePass); n > 0 {
		return fmt.Sprintf("commands were passed through to the disk (SG_IO or the like), which may have written: %d are counted, as they begin or end", n)
	}
	return t.early()
}

// early returns why nothing can be vouched for if a write ended after the seal
// that may have been under way at the start, and so has no mark.
func (t *Tracker) early() string {
	if t.rec.get(offEpoch) == 0 || t.rec.get(offDrained) == 1 {
		return ""
	}
	switch ends, err := t.unmarkedEnds(); {
	case err != nil:
		return err.Error()
	case ends != t.rec.get(offSeenStranger):
		return lostEarly
	}
	return ""
}

func detached(name string) string {
	return fmt.Sprintf("the kernel program %s was detached by somebody", name)
}

// missed counts the events that the shared programs were not run for.
func (t *Tracker) missed() (uint64, error) { return missedEvents(t.pins.links(), sharedPrograms) }

// deviceDoubt returns why the device is no longer the one that was tracked.
func (t *Tracker) deviceDoubt() string {
	d, err := lookNumber(kernelNumber(t.rec.get(offDevice)))
	switch start, size := t.rec.get(offStart), t.rec.size(); {
	case err != nil:
		return "the device is gone: " + err.Error()
	case d.diskseq != t.rec.get(offDiskSeq):
		return fmt.Sprintf("the device was replaced: disk number %d in sequence has its number now, tracked was %d", d.diskseq, t.rec.get(offDiskSeq))
	case uint32(d.disk) != t.rec.get32(offDisk):
		return fmt.Sprintf("the device was renumbered: it is on disk %v now, tracked was %v", d.disk, kernelNumber(t.rec.get32(offDisk)))
	case d.start != start:
		return fmt.Sprintf("the partition was moved from sector %d to %d", start, d.start)
	case int64(d.sectors)*sector != size || t.rec.get(offBeyond) > 0:
		return fmt.Sprintf("the device was resized from %d to %d bytes", size, int64(d.sectors)*sector)
	}
	t.watch(d)
	if t.rec.get(offUncounted)&uncountedStats != 0 && d.isRAID() {
		return quietRAID + ": they were turned off"
	}
	if sysfs.Attr(d.diskDir+"/queue/dax") == "1" {
		return "the device can be mapped directly (DAX)"
	}
	if who := d.opaqueHolder(); who != "" {
		return fmt.Sprintf("the device became a part of %s, which may send on requests that are not announced again", who)
	}
	m := d.mapping()
	if was := t.rec.get(offThin); m.why == "" && was != 0 && m.thin != was {
		return "its device-mapper table has another volume of a thin pool now (a snapshot was merged into it, say)"
	}
	return m.why
}

// trust asks for doubts and keeps the first one for good: a device that was
// replaced and put back is not the one that was tracked all the time.
func (t *Tracker) trust() cbt.Trust {
	if t.rec.text(offReason) == "" {
		if why := t.doubt(); why != "" {
			t.lose(why)
		}
	}
	return cbt.Trust{Since: cbt.Epoch(t.rec.get(offEpoch)), Lost: t.rec.text(offReason)}
}

func (t *Tracker) lose(why string) {
	if why == "" {
		why = "no reason given"
	}
	if t.rec.text(offReason) == "" {
		t.rec.setText(offReason, why)
	}
}

// Trust implements cbt.Tracker.
func (t *Tracker) Trust() cbt.Trust {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return cbt.Trust{Lost: "the tracker is closed"}
	}
	return t.trust()
}

// Lose makes the tracker vouch for nothing until the next Seal, for the given
// reason: the caller knows of a write that passed no block layer. It forgets no
// mark, and outlives the process.
func (t *Tracker) Lose(reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.lose(reason)
	}
}

// Seal implements cbt.Sealer. It refuses what no new epoch can put right: a
// device that was replaced or resized is stopped and started anew. It also
// refuses while writes that were under way at the start may not have ended, and
// would not be marked when they do.
func (t *Tracker) Seal(e cbt.Epoch) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch since := cbt.Epoch(t.rec0(offEpoch)); {
	case t.closed:
		return t.errorf("seal epoch", os.ErrClosed)
	case e <= since:
		return t.errorf("seal epoch", fmt.Errorf("%d is not above %d, the last one", e, since))
	case t.out > 0:
		return t.errorf("seal epoch", fmt.Errorf("%d taken maps are out, put them back first", t.out))
	case t.rec.get(offDrained) == 0 && !t.settles():
		return t.errorf("seal epoch", t.explainBusy(errUndrained))
	case t.rec.get(offLost) > 0:
		return t.errorf("seal epoch", fmt.Errorf("%d writes could not be marked: stop tracking and start anew", t.rec.get(offLost)))
	}
	if why := t.deviceDoubt(); why != "" {
		t.lose(why)
		return t.errorf("seal epoch", fmt.Errorf("%s: stop tracking and start anew", why))
	}
	missed, err := t.missed()
	if err != nil {
		return t.errorf("seal epoch", err)
	}
	if err := t.forgive(); err != nil {
		return t.errorf("seal epoch", err)
	}
	t.forgave = t.forgave || missed != t.rec.get(offBaseMissed)
	t.rec.set(offBaseMissed, missed)
	t.rec.set(offBasePass, t.rec.get(offPassthrough))
	t.rec.set(offEpoch, uint64(e))
	t.rec.clearText(offReason) // last: until here the old reason holds
	return nil
}

// forgive lets writes that may have been under way at the start end without a mark
// until the seal that follows.
func (t *Tracker) forgive() error {
	ends, err := t.unmarkedEnds()
	if err != nil || t.rec.get(offDrained) == 1 {
		return err
	}
	t.strangers = ends
	t.rec.set(offSeenStranger, ends)
	return nil
}

// Advance implements cbt.Sealer. What the programs have counted of doubts since
// the last seal stays counted: one that comes while this runs is found by the next
// take.
//
//  1. take note of what is proven, in this process alone
//  2. the new epoch, in one store: who relies on the one before is refused from
//     here on. Killed here, all that was taken is still held
//  3. what is proven is not held any more
func (t *Tracker) Advance(taken *cbt.Taken, proven []cbt.Extent, e cbt.Epoch) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return t.errorf("advance the epoch", os.ErrClosed)
	}
	trust := t.trust()
	err := trust.Check(trust.Since)
	switch {
	case err != nil:
	case e <= trust.Since:
		err = fmt.Errorf("%d is not above %d, the last one", e, trust.Since)
	case t.out > 1:
		err = fmt.Errorf("%d other taken maps are out, put them back first", t.out-1)
	}
	if err != nil {
		proven = nil
	}
	if spent := t.m.PutBack(taken, proven); spent != nil {
		return t.errorf("advance the epoch", errors.Join(err, spent))
	}
	t.out--
	if err == nil {
		t.rec.set(offEpoch, uint64(e))
	}
	t.planes.hold(t.m.Runs())
	if err != nil {
		return t.errorf("advance the epoch", err)
	}
	return nil
}

// rec0 reads a number of the record, 0 when the tracker is closed.
func (t *Tracker) rec0(off int) uint64 {
	if t.closed {
		return 0
	}
	return t.rec.get(off)
}
