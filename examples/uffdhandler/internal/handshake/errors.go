package handshake

import (
	"errors"
	"syscall"
)

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
	// ErrTooManyDescriptors: more than MaxDescriptors.
	ErrTooManyDescriptors = errors.New("too many descriptors")
	// ErrOutOfDescriptors: this process or its host has no room for what the client
	// has sent, or needs to be served. It is the server's want and not the client's.
	ErrOutOfDescriptors = errors.New("no room for another descriptor")
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
	if lack := Shortage(err); lack != "" {
		return lack
	}
	for _, n := range names {
		if errors.Is(err, n.err) {
			return n.name
		}
	}
	return ""
}

// shortages are told by their errno, wherever they come up: whoever the error blames
// besides, it is not the client.
var shortages = []struct {
	err  error
	name string
}{
	{ErrOutOfDescriptors, "out_of_descriptors"},
	{syscall.EMFILE, "out_of_descriptors"},
	{syscall.ENFILE, "out_of_descriptors"},
	{syscall.ENOMEM, "out_of_memory"},
	{syscall.ENOBUFS, "out_of_memory"},
}

// Shortage returns what this process or its host lacks, by a short name; "" if the
// error is of another kind.
func Shortage(err error) string {
	for _, s := range shortages {
		if errors.Is(err, s.err) {
			return s.name
		}
	}
	return ""
}
