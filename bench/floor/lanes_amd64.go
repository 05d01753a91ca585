package floor

import (
	"runtime"

	simd "github.com/minio/sha256-simd"
	"golang.org/x/sys/cpu"
)

func hasLanes() bool {
	return cpu.X86.HasAVX512F && cpu.X86.HasAVX512DQ && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512VL
}

// lanes is how many streams one multi-lane server hashes at once.
const lanes = 16

// laneDigesters makes one server for each core and a full set of streams for each server. The library gives streams their
// lanes by turns, so those of one server are made together. Its servers cannot be stopped: they end with the process.
func laneDigesters() []digester {
	var out []digester
	for range runtime.GOMAXPROCS(0) {
		srv := simd.NewAvx512Server()
		for range lanes {
			out = append(out, streamDigester(simd.NewAvx512(srv)))
		}
	}
	return out
}
