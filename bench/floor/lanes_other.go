//go:build !amd64

package floor

// hasLanes reports whether many streams can be hashed at once: that is for x86-64.
func hasLanes() bool { return false }

func laneDigesters() []digester { return nil }
