package workload

import (
	"errors"
	"fmt"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

const passwd = "/etc/passwd"

// account is what the host said of a user.
type account struct {
	uid uint32
	err error
}

// user gives an agent the processes of a user.
func (s *search) user(agent, name string, load *overlay.Workload) error {
	a, known := s.accounts[name]
	if !known {
		a = lookUp(name)
		s.accounts[name] = a
	}
	s.watch(filepath.Dir(passwd)) // the name may become another's
	if a.err != nil {
		return a.err
	}
	if other := s.users[a.uid]; other != "" {
		return fmt.Errorf("user %s is agent %s's", name, other)
	}
	s.users[a.uid] = agent
	load.UIDs = []uint32{a.uid}
	return nil
}

// lookUp takes a number as it is: a user need not have a name.
func lookUp(name string) account {
	text := name
	if _, err := strconv.ParseUint(name, 10, 32); err != nil {
		u, err := user.Lookup(name)
		if _, unknown := errors.AsType[user.UnknownUserError](err); unknown {
			return account{err: fmt.Errorf("this host has no user %q", name)}
		}
		if err != nil {
			return account{err: fmt.Errorf("look up user %q: %w", name, err)}
		}
		text = u.Uid
	}
	uid, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return account{err: fmt.Errorf("user %q has no number: %w", name, err)}
	}
	return account{uid: uint32(uid)}
}

// forgetUsers has users looked up again. They are kept until then because a directory service may answer slowly.
func (w *Watcher) forgetUsers() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.users)
}
