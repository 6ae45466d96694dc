package platform

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestOneDaemonOfANetworkNamespace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	first, err := Alone(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Alone(dir); !errors.Is(err, ErrNotAlone) || !strings.Contains(err.Error(), "process "+strconv.Itoa(os.Getpid())+" (fix:") {
		t.Errorf("a second: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	again, err := Alone(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestNeverTwoDaemonsAtOnce(t *testing.T) {
	dir := t.TempDir()
	var holders atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 200 {
				l, err := Alone(dir)
				if errors.Is(err, ErrNotAlone) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if holders.Add(1) > 1 {
					t.Error("two hold it")
				}
				holders.Add(-1)
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}
