package platform

import (
	"bufio"
	"errors"
	"os"
	"strings"
)

// CgroupRoot is where cgroup v2 is mounted.
func CgroupRoot() (string, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1], nil
		}
	}
	return "", errors.Join(errors.New("cgroup v2 is not mounted"), lines.Err())
}
