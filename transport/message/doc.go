// Package message holds what the frames of a session say: one struct for each
// message, its layout as a table beside the code, and its limits.
//
// Read it in this order: [Open] (how a session begins), [Plan] (what will be
// done and why), [Digests], [Want] and [Pieces] (finding what differs), [Data]
// and [Barrier] (sending it), [Ack] and [Sealed] (proving it).
//
// Every message has three methods. Kind is its number on the wire. Append adds
// its encoding to a slice. Decode reads one encoding, whole: it refuses
// trailing bytes, unknown values, numbers out of range and encodings that
// Append does not make, so that each message has one byte string, and
// Append after Decode gives back the bytes read. A refusal is an [*ErrMalformed].
//
// Decode keeps no more memory than the bytes it was given stand for: every
// count is held against its limit and against the bytes that are there before
// a list is made. Byte slices in a decoded message are parts of the slice that
// was decoded and live as long as it does; lists reuse the capacity that the
// receiver already has, so that a receiver used again and again costs nothing.
//
// Append makes its strings fit: what is not UTF-8 or is a control character
// becomes U+FFFD, what is longer than the limit is cut.
//
// Integers are little endian and of fixed width, except those marked uv, which
// are unsigned varints in their shortest form. str8 is a string with a length
// of one byte before it, str16 with a length of two bytes.
package message
