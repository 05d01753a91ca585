//go:build !undo

package failback

import "errors"

func (t *target) beginUndo(path string, run [16]byte) (saver, error) {
	return nil, errors.ErrUnsupported
}
