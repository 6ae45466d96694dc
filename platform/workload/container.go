package workload

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// container is a running container.
type container struct {
	id, name, image string
	labels          map[string]string
	pid             int    // of its first process
	started         uint64 // when that started
	home            string // the cgroup that is the container's alone; empty if it has none
	entered         int    // times that processes were put into it from outside
}

var longID = regexp.MustCompile(`[0-9a-f]{64}`)

// containerID is the ID of the container that a cgroup is for, by its name; empty if it is for none.
func containerID(cgroup string) string { return longID.FindString(cgroup) }

// homeOf is the outermost cgroup of a container's process that bears the container's ID, which engines see to: what is
// in there is the container, whatever it makes below. Empty if there is none below root.
func homeOf(root string, pid int, id string) (string, error) {
	dir, err := groupOf(root, pid)
	if err != nil {
		return "", err
	}
	home := ""
	for ; isBelow(root, dir); dir = filepath.Dir(dir) {
		if strings.Contains(filepath.Base(dir), id) {
			home = dir
		}
	}
	return home, nil
}

// containers are the cgroups of the containers that match, and why there is none, or not all.
func (s *search) containers(m overlay.ContainerMatch) ([]claim, error) {
	s.watchContainers()
	var found []claim
	var away, faults []error
	answers := false
	for _, e := range s.engines {
		running, problem := e.running()
		if problem != nil {
			away = append(away, fmt.Errorf("no container engine at %s: %w", e.path, problem))
		}
		answers = answers || problem == nil
		for _, c := range running {
			if !c.fits(m) {
				continue
			}
			dir, err := s.homeOrMoved(c)
			if err != nil {
				faults = append(faults, err)
			} else if isDir(dir) {
				found = append(found, claim{dir, "container " + c.name})
			}
		}
	}
	switch {
	case len(found)+len(faults) > 0:
		return found, errors.Join(faults...)
	case answers:
		return nil, fmt.Errorf("no container runs that is %s", overlay.Match{Container: &m})
	case len(s.engines) == 0:
		return nil, errors.New("no container engine is configured")
	}
	return nil, errors.Join(away...)
}

// watchContainers watches where engines make cgroups, to see new ones at once.
func (s *search) watchContainers() {
	s.sliceDirs()
	for _, name := range []string{"libpod_parent", "docker"} {
		if dir := filepath.Join(s.root, name); isDir(dir) {
			s.watch(dir)
		}
	}
	for _, e := range s.engines {
		for _, dir := range e.homes() {
			if isDir(dir) {
				s.watch(dir)
			}
		}
	}
}

// homeOrMoved is the cgroup of a container; one that has none of its own is noted.
func (s *search) homeOrMoved(c container) (string, error) {
	if c.home != "" {
		return c.home, nil
	}
	s.homeless[c.id] = c
	r, known := s.moved[c.id]
	if !known {
		s.unmoved = true
		return "", fmt.Errorf("container %s has no cgroup of its own yet", c.name)
	}
	return moveDir(s.root, c.id), r.fault
}

// fits reports whether a container is what a match says.
func (c container) fits(m overlay.ContainerMatch) bool {
	key, value, _ := strings.Cut(m.Label, "=")
	if m.Label != "" {
		if have, ok := c.labels[key]; !ok || have != value {
			return false
		}
	}
	if m.Name != "" && m.Name != c.name {
		return false
	}
	return m.Image == "" || sameImage(m.Image, c.image)
}

// sameImage compares names of images. One without tag or digest is every one; one without a registry is a local one, or
// that of the registry that engines take then.
func sameImage(want, have string) bool {
	candidates := []string{want, "localhost/" + want, "docker.io/" + want, "docker.io/library/" + want}
	tagged, _, _ := strings.Cut(have, "@")
	name := tagged
	if i := strings.LastIndexByte(tagged, ':'); i > strings.LastIndexByte(tagged, '/') {
		name = tagged[:i]
	}
	return slices.ContainsFunc(candidates, func(c string) bool { return c == have || c == tagged || c == name })
}
