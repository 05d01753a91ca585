package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// Words of messages.
const (
	wrongMedium = "the medium does not hold what was written"
	inputOutput = "input/output error"
)

// liar puts the target on dm-flakey with this feature on. The session must not
// end well, and must say why; once the medium is honest again the next one does.
func (g *guest) liar(feature, word string) (string, error) {
	p := g.newPair()
	honest := linear(mediumRAM, 0, volumeSize)
	target, err := dmCreate("target", honest)
	if err != nil {
		return "", err
	}
	did, err := g.lie(p, target, feature, word)
	err = errors.Join(err, dmReload("target", honest), dmRemove("target"))
	return did, err
}

func (g *guest) lie(p pair, target, feature, word string) (string, error) {
	source, dirty := "/tmp/source.img", "/tmp/dirty.fbm"
	err := errors.Join(store(target, p.old), store(source, p.new), os.WriteFile("/tmp/extents", []byte(p.extents), 0o600))
	if err != nil {
		return "", err
	}
	defer os.Remove(source)
	if err := g.must("map", "from-extents", "--volume", target, "-o", dirty, "/tmp/extents"); err != nil {
		return "", err
	}
	// Never up, for an hour down.
	flakey := table{volumeSize / sector, "flakey", mediumRAM + " 0 0 3600 " + feature}
	if err := dmReload("target", flakey); err != nil {
		return "", err
	}
	o, err := g.failback("sync", "--dirty", dirty, source, target)
	if err != nil {
		return "", err
	}
	if o.code != 3 || !strings.Contains(o.stderr, word) || !strings.Contains(o.stderr, "next:") {
		return "", fmt.Errorf("%v; want exit code 3, %q and a next step", o, word)
	}
	if err := dmReload("target", linear(mediumRAM, 0, volumeSize)); err != nil {
		return "", err
	}
	if err := g.must("sync", "--dirty", dirty, source, target); err != nil {
		return "", err
	}
	if err := holds(target, p.new, "the next run said that the volumes are equal; they are not"); err != nil {
		return "", err
	}
	return "told: " + line(o.stderr, word), nil
}

// line is the line of a text that has a word in it.
func line(text, word string) string {
	for l := range strings.Lines(text) {
		if strings.Contains(l, word) {
			return strings.TrimSpace(l)
		}
	}
	return ""
}
