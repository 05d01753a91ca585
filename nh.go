package failback

import "encoding/binary"

// NH is the universal hash of UMAC (Black, Halevi, Krawczyk, Krovetz, Rogaway:
// "UMAC: Fast and Secure Message Authentication", CRYPTO 1999; RFC 4418): the
// message's 32-bit words, added to the key's, are multiplied in pairs and the
// products added up modulo 2^64. For two different messages of one length the
// sums differ but with probability 2^-32 over the choice of the key.
//
// We take four sums under the same key, shifted by one block of 64 bytes each
// (the Toeplitz construction of the same paper: the key words that meet the
// last differing pair in sum j meet no message word in sums before it, so the
// four are independent where it matters). Two pieces collide in all four with
// probability 2^-128.
//
//	sum j = Σ over pairs i of (m[2i] + k[2i+16j]) · (m[2i+1] + k[2i+1+16j])   mod 2^64
//
// Words are little endian, additions modulo 2^32. A message is padded with
// zeroes to whole blocks; only messages of one length are compared.
const (
	nhBlock = 64 // bytes
	nhSums  = 4
	// nhKeyBytes covers the longest message under the furthest shift.
	nhKeyBytes = pieceSize + (nhSums-1)*nhBlock
)

// nhGeneric is the definition. msg is a whole number of blocks, at most a piece.
func nhGeneric(out *[nhSums]uint64, msg []byte, key *[nhKeyBytes]byte) {
	for j := range out {
		sum := uint64(0)
		k := key[j*nhBlock:]
		for i := 0; i < len(msg); i += 8 {
			m, q := binary.LittleEndian.Uint64(msg[i:]), binary.LittleEndian.Uint64(k[i:])
			sum += uint64(uint32(m)+uint32(q)) * uint64(uint32(m>>32)+uint32(q>>32))
		}
		out[j] = sum
	}
}
