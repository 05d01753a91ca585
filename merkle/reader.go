package merkle

import "context"

// A NodeReader is a tree that can be asked for nodes: a [File], a [Tree], or
// one at the other end of a connection.
//
// One call of ReadNodes is one request. A remote implementation sends level
// and spans, then streams the answer: one round trip, and bandwidth.
type NodeReader interface {
	// Shape returns what the tree is over.
	Shape() Shape

	// Root returns the root. It must not cost a round trip: a remote one
	// learns it with the message that says the tree is ready.
	Root(ctx context.Context) (Hash, error)

	// ReadNodes calls yield with the nodes of spans, all of one level, in
	// ascending order and each once, in stretches of any length that do not
	// reach from one span into the next. The slice is yield's until it returns;
	// an error of yield ends the call and is returned. spans are ascending,
	// disjoint and not empty.
	ReadNodes(ctx context.Context, level int, spans []Range, yield func(first int64, nodes []Hash) error) error
}

var (
	_ NodeReader = (*File)(nil)
	_ NodeReader = (*Tree)(nil)
)
