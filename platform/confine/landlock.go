package confine

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// scopingABI is the version of Landlock that has a domain for processes alone, without any rule about files: Linux 6.12.
// A rule about files would keep the command from making sandboxes of its own.
const scopingABI = 6

// ruleset is struct landlock_ruleset_attr.
type ruleset struct {
	files, network, scoped uint64
}

// keepToItself makes this thread and what it starts a Landlock domain, so that they cannot signal processes outside it,
// nor look into them or change them, as root or another command of the same user could. Kernels that cannot do that
// leave it at what capabilities forbid.
func keepToItself() error {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 || abi < scopingABI {
		return nil
	}
	rules := ruleset{scoped: unix.LANDLOCK_SCOPE_SIGNAL}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&rules)), unsafe.Sizeof(rules), 0)
	if errno != 0 {
		return fmt.Errorf("keep to the command's own processes: %w", errno)
	}
	_, _, errno = unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0)
	err := unix.Close(int(fd))
	if errno != 0 {
		err = errors.Join(errno, err)
	}
	if err != nil {
		return fmt.Errorf("keep to the command's own processes: %w", err)
	}
	return nil
}
