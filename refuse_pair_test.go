package failback

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/looptest"
)

// pairRefused checks a pair in the direction given; both are opened for reading,
// since opening the target refuses most of these before the pair is looked at.
func pairRefused(t *testing.T, source, target, reason string) {
	t.Helper()
	s, d := openDisk(t, source, OpenOptions{}), openDisk(t, target, OpenOptions{})
	err := CheckPair(s, d)
	if err == nil {
		t.Errorf("source %s, target %s: not refused, want: %s", source, target, reason)
		return
	}
	isRefused(t, err, target, reason)
}

func pairFine(t *testing.T, source, target string) {
	t.Helper()
	if err := CheckPair(openDisk(t, source, OpenOptions{}), openDisk(t, target, OpenOptions{})); err != nil {
		t.Errorf("source %s, target %s: %v", source, target, err)
	}
}

func TestCheckPairFiles(t *testing.T) {
	dir := t.TempDir()
	a, b := makeFile(t, filepath.Join(dir, "a"), 4096), makeFile(t, filepath.Join(dir, "b"), 4096)
	soft, hard := filepath.Join(dir, "soft"), filepath.Join(dir, "hard")
	if err := os.Symlink(a, soft); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(a, hard); err != nil {
		t.Fatal(err)
	}
	pairFine(t, a, b)
	pairFine(t, b, a)
	for _, same := range []string{a, soft, hard} {
		pairRefused(t, a, same, "it is the source")
		pairRefused(t, same, a, "it is the source")
	}
	// As it really goes: the source open, then the target.
	s, d := openDisk(t, soft, OpenOptions{}), openDisk(t, hard, asTarget)
	isRefused(t, CheckPair(s, d), hard, "it is the source")
}

func TestCheckPairLoops(t *testing.T) {
	dir := t.TempDir()
	file := makeFile(t, filepath.Join(dir, "disk"), 4<<20)
	whole := looptest.Attach(t, file, looptest.Options{Flags: unix.LO_FLAGS_PARTSCAN}).Path
	first := looptest.Attach(t, file, looptest.Options{Limit: 1 << 20}).Path
	later := looptest.Attach(t, file, looptest.Options{Offset: 1 << 20, Limit: 1 << 20}).Path
	over := looptest.Attach(t, whole, looptest.Options{Offset: 1 << 20}).Path
	other := looptest.Attach(t, makeFile(t, filepath.Join(dir, "other"), 4<<20), looptest.Options{}).Path
	node := filepath.Join(dir, "node")
	var st unix.Stat_t
	if err := unix.Stat(whole, &st); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(st.Rdev)); err != nil {
		t.Fatal(err)
	}
	pairRefused(t, whole, node, "it is the source")
	pairRefused(t, whole, file, "it shares storage with the source")
	pairRefused(t, file, whole, "it shares storage with the source")
	pairRefused(t, whole, first, "shares storage")
	pairRefused(t, first, whole, "shares storage")
	pairRefused(t, over, later, "shares storage")
	pairRefused(t, over, whole, "shares storage")
	pairRefused(t, file, over, "shares storage")
	pairFine(t, first, later)
	pairFine(t, first, over)
	pairFine(t, whole, other)

	p1, p2 := looptest.Partition(t, whole, 1, 64<<10, 1<<20-64<<10), looptest.Partition(t, whole, 2, 2<<20, 1<<20)
	pairRefused(t, whole, p1, "shares storage")
	pairRefused(t, p2, whole, "shares storage")
	pairRefused(t, p1, first, "shares storage")
	pairRefused(t, p2, over, "shares storage")
	pairFine(t, p1, p2)
	pairFine(t, p2, first)
}

func TestCheckPairFileSystem(t *testing.T) {
	for _, kind := range []string{"ext4", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			dir, backing := fileSystem(t, kind, 128<<20, looptest.Options{})
			device := "/dev/" + loopOver(t, backing).name
			file := makeFile(t, filepath.Join(dir, "volume"), 1<<20)
			pairRefused(t, device, file, "it lies on the source")
			pairRefused(t, file, device, "lies on it")
			pairRefused(t, backing, file, "it lies on the source")
			inner := looptest.Attach(t, file, looptest.Options{}).Path
			pairRefused(t, device, inner, "it lies on the source")
			pairFine(t, file, makeFile(t, filepath.Join(dir, "another"), 1<<20))
		})
	}
}
