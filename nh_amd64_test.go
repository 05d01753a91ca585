package failback

import "golang.org/x/sys/cpu"

func nhMachine() map[string]func(*[nhSums]uint64, []byte, *[nhKeyBytes]byte) {
	forms := map[string]func(*[nhSums]uint64, []byte, *[nhKeyBytes]byte){}
	add := func(name string, has bool, f func(*[nhSums]uint64, *byte, *byte, int)) {
		if has {
			forms[name] = func(out *[nhSums]uint64, msg []byte, key *[nhKeyBytes]byte) {
				if *out = [nhSums]uint64{}; len(msg) > 0 {
					f(out, &msg[0], &key[0], len(msg)/nhBlock)
				}
			}
		}
	}
	add("avx2", cpu.X86.HasAVX2, nhAVX2)
	add("avx512", cpu.X86.HasAVX512F, nhAVX512)
	return forms
}
