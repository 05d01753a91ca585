// Package transport moves frames between the two ends of a session.
//
// A frame has a kind, which the package message gives a meaning to, a head and
// a body. It is numbered and checksummed, so that what arrives is what was sent,
// in order, or an error that says where the stream went wrong. A stream that
// ends between two frames gives io.EOF; whether that is where its writer meant
// to end is for the messages to say (docs/PROTOCOL.md, Bye).
//
// Read it in this order: [Frame] (the bytes), [Conn] (one connection: frames
// out and in, keep-alive, rate limit), [Encoder] and [Decode] (data frames and
// their codecs), [Chooser] (which codec pays), [Window] (how much may be under
// way), [Pipe] (a connection inside one process).
//
// Nothing is allocated for a frame in steady state: received frames come from a
// pool that keeps at most 24 MiB for the whole process, an encoder owns its
// buffers. What the peer sends cannot make the package hold more than one frame
// beyond those that the caller has not released.
package transport
