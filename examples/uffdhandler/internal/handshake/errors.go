package handshake

import "errors"

// Errors by name, each for one way in which a client can be wrong.
var (
	// ErrMessage: it is not what a VMM sends.
	ErrMessage = errors.New("bad message")
	// ErrCutShort: the client hung up before its message was whole.
	ErrCutShort = errors.New("message cut short")
	// ErrTooLong: the message is longer than MaxMessage.
	ErrTooLong = errors.New("message too long")
	// ErrTimeout: the message, or its descriptor, did not come in time.
	ErrTimeout = errors.New("no whole message in time")
	// ErrNoDescriptor: the message is whole and no descriptor has come.
	ErrNoDescriptor = errors.New("no descriptor came with the message")
	// ErrTooManyDescriptors: more than MaxDescriptors, or than this process may have.
	ErrTooManyDescriptors = errors.New("too many descriptors")
	// ErrDescriptor: no descriptor, or more than one, is a userfaultfd of use.
	ErrDescriptor = errors.New("not one userfaultfd")
	// ErrPeer: the process at the other end is gone, or not who it says.
	ErrPeer = errors.New("the client is not who it says")
)

var names = []struct {
	err  error
	name string
}{
	{ErrMessage, "bad_message"},
	{ErrCutShort, "cut_short"},
	{ErrTooLong, "too_long"},
	{ErrTimeout, "timeout"},
	{ErrNoDescriptor, "no_descriptor"},
	{ErrTooManyDescriptors, "too_many_descriptors"},
	{ErrDescriptor, "bad_descriptor"},
	{ErrPeer, "bad_peer"},
}

// Name returns a short name for a cause, for counting; "" for one that is not
// of this package.
func Name(err error) string {
	for _, n := range names {
		if errors.Is(err, n.err) {
			return n.name
		}
	}
	return ""
}
