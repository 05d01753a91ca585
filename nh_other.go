//go:build !amd64

package failback

// nh hashes msg, a whole number of blocks and at most a piece.
func nh(out *[nhSums]uint64, msg []byte, key *[nhKeyBytes]byte) { nhGeneric(out, msg, key) }
