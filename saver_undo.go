//go:build undo

package failback

import "os"

func (t *target) beginUndo(path string, run [16]byte) (saver, error) {
	f := undoFacts{
		Target:  undoVolume{Size: t.vol.v.Size(), Identity: clip(t.vol.identity()), Name: clip(t.name)},
		Source:  undoVolume{Size: t.start.Volume.Size, Identity: t.start.Volume.Identity, Name: t.start.Volume.Name},
		Session: run, BestEffort: t.saveTo.best || t.saveTo.onDemand && t.start.Undo == undoBest,
	}
	if _, err := os.Stat(path); err == nil && t.start.Resume != resumeNot {
		return resumeUndo(path, f)
	}
	return createUndo(path, f)
}
