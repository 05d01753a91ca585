package ebpf

import (
	"bytes"
	_ "embed" // of the objects
	"fmt"

	"github.com/cilium/ebpf"
)

//go:generate ./bpf/build

// The programs, compiled; the test of this package builds them again where
// there is a clang. Their code is the same on every little-endian machine.
var (
	//go:embed bpf/tracker.bpf.o
	trackerObject []byte
	//go:embed bpf/session.bpf.o
	sessionObject []byte
)

func loadSpec(name string, object []byte) (*ebpf.CollectionSpec, error) {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		return nil, fmt.Errorf("read the %s programs: %w", name, err)
	}
	return spec, nil
}

// bitmapSpec is the map of one volume's planes.
func bitmapSpec(words uint64) *ebpf.MapSpec {
	return &ebpf.MapSpec{
		Name: "failback_bits", Type: ebpf.Array, KeySize: 4, ValueSize: 8,
		MaxEntries: uint32(words * planeCount), Flags: flagMmapable | flagInnerMap,
	}
}

// Flags of a map, see bpf/kernel.h.
const (
	flagMmapable = 1 << 10
	flagInnerMap = 1 << 12
)

// builtWith is the version of clang that made the objects.
const builtWith = "14."
