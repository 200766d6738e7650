// Package sys makes the system calls behind guest memory: a sealed memfd, its
// mappings, populating and giving back. Every call says which system call it
// makes and retries EINTR where that is right. On other systems than Linux each
// answers ErrNotSupported.
package sys

import (
	"errors"
	"fmt"
)

// ErrNotSupported says that this system cannot do what was asked.
var ErrNotSupported = fmt.Errorf("guest memory needs Linux: %w", errors.ErrUnsupported)
