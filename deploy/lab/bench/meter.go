package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// userHertz is the unit of times in /proc/PID/stat: the kernel's promise to programs, whatever its own clock.
const userHertz = 100

// processTime is how much CPU time a process has had, in its own code and in the kernel.
func processTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	return parseProcessTime(data)
}

func parseProcessTime(stat []byte) (time.Duration, error) {
	end := bytes.LastIndexByte(stat, ')') // a program's name may hold anything, blanks too
	fields := strings.Fields(string(stat[end+1:]))
	if end < 0 || len(fields) < 13 {
		return 0, errors.New("read CPU time: /proc/PID/stat has an unknown form")
	}
	var ticks uint64
	for _, field := range fields[11:13] { // utime and stime
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / userHertz, nil
}

// processesTime is the sum over several processes.
func processesTime(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		t, err := processTime(pid)
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return sum, nil
}

// resetPeak makes the peak of a process's resident memory count from now.
func resetPeak(pid int) error {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		return fmt.Errorf("reset peak memory: %w", err)
	}
	return nil
}

// peakMemory and residentMemory are in bytes.
func peakMemory(pid int) (uint64, error)     { return processStatus(pid, "VmHWM:") }
func residentMemory(pid int) (uint64, error) { return processStatus(pid, "VmRSS:") }

func processStatus(pid int, key string) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) == 3 && fields[0] == key {
			kib, err := strconv.ParseUint(fields[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("read memory: process %d has no %s", pid, key)
}

// cpuTimes are what the machine's processors did since it started, in ticks.
type cpuTimes struct{ stolen, total uint64 }

// stolen reads the time that a hypervisor gave to others. It is worth a remark, so no error: zero if unknown.
func stolen() (t cpuTimes) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return t
	}
	line, _, _ := strings.Cut(string(data), "\n")
	fields := strings.Fields(line)
	for i, field := range fields[min(len(fields), 1):min(len(fields), 9)] { // guest time is counted in user time already
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return cpuTimes{}
		}
		t.total += n
		if i == 7 {
			t.stolen = n
		}
	}
	return t
}

// machine is where the figures come from.
type machine struct {
	Kernel       string  `json:"kernel"`
	Processors   int     `json:"processors"`
	LoadAverage  string  `json:"loadAverage"` // at the end, over 1, 5 and 15 minutes
	StolenShare  float64 `json:"stolenShare"` // of all processor time during the run
	BenchVersion string  `json:"go"`
}

func describeMachine(before cpuTimes) machine {
	m := machine{Processors: runtime.NumCPU(), BenchVersion: runtime.Version()}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		m.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	if data, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.LoadAverage = strings.Join(strings.Fields(string(data))[:3], " ")
	}
	if after := stolen(); after.total > before.total {
		m.StolenShare = float64(after.stolen-before.stolen) / float64(after.total-before.total)
	}
	return m
}
