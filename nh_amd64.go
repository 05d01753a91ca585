package failback

import "golang.org/x/sys/cpu"

//go:noescape
func nhAVX512(out *[nhSums]uint64, msg, key *byte, blocks int)

//go:noescape
func nhAVX2(out *[nhSums]uint64, msg, key *byte, blocks int)

// nh hashes msg, a whole number of blocks and at most a piece.
func nh(out *[nhSums]uint64, msg []byte, key *[nhKeyBytes]byte) {
	switch {
	case len(msg) == 0:
		*out = [nhSums]uint64{}
	case cpu.X86.HasAVX512F:
		nhAVX512(out, &msg[0], &key[0], len(msg)/nhBlock)
	case cpu.X86.HasAVX2:
		nhAVX2(out, &msg[0], &key[0], len(msg)/nhBlock)
	default:
		nhGeneric(out, msg, key)
	}
}
