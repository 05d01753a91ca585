package merkle

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/zeebo/blake3"
)

// TestBlake3 holds our walk of the tree to another implementation of BLAKE3, at
// every length where it branches differently.
func TestBlake3(t *testing.T) {
	data := make([]byte, 4<<20)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(data)
	d := newDigester(BLAKE3).(*blake3Digester)
	var key [32]byte
	for i, w := range d.leaves {
		binary.LittleEndian.PutUint32(key[4*i:], w)
	}
	lengths := []int{0, 1, 63, 64, 65, 512, 515, 1023, 1024, 1025, 65536 + 512, 100_000, 1 << 20, 1<<20 + 1, 4 << 20}
	for k := 1; k <= 80; k++ {
		lengths = append(lengths, k*1024-512, k*1024, k*1024+512)
	}
	for _, n := range lengths {
		ref, err := blake3.NewKeyed(key[:])
		if err != nil {
			t.Fatal(err)
		}
		_, _ = ref.Write(data[:n])
		if got := d.leaf(data[:n]); !bytes.Equal(got[:], ref.Sum(nil)) {
			t.Fatalf("%d bytes: %s, want %x", n, got, ref.Sum(nil))
		}
	}
}
