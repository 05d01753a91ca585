//go:build !amd64

package failback

func nhMachine() map[string]func(*[nhSums]uint64, []byte, *[nhKeyBytes]byte) {
	return map[string]func(*[nhSums]uint64, []byte, *[nhKeyBytes]byte){}
}
