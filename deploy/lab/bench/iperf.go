package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/bulkhead-mesh/bulkhead/deploy/lab"
)

const iperfPort = 5201

// load is what iperf3 is told to send.
type load struct {
	Name    string
	udp     bool
	size    int // bytes of each UDP payload
	streams int
}

var loads = []load{
	{Name: "TCP, 1 stream", streams: 1},
	{Name: "TCP, 4 streams", streams: 4},
	{Name: "UDP, 64 bytes", udp: true, size: 64, streams: 1},
	{Name: "UDP, 1200 bytes", udp: true, size: 1200, streams: 1},
}

func (l load) unit() string {
	if l.udp {
		return "kpkt/s"
	}
	return "Gbit/s"
}

func (l load) arguments(to netip.Addr, long time.Duration) []string {
	args := []string{"-c", to.String(), "-p", strconv.Itoa(iperfPort), "-J", "-t", strconv.Itoa(int(long / time.Second)), "--connect-timeout", "5000"}
	if l.udp {
		return append(args, "-u", "-b", "0", "-l", strconv.Itoa(l.size))
	}
	return append(args, "-C", "cubic", "-P", strconv.Itoa(l.streams))
}

// received is what arrived, by the receiver's count.
type received struct {
	amount float64 // gigabits of TCP, thousands of UDP packets
	rate   float64 // the same in a second
}

// iperfServer runs on the receiving host and is used again and again.
func iperfServer(h *lab.Host, at netip.Addr) (*lab.Process, error) {
	return h.Start("iperf3", "iperf3", "-s", "-B", at.String(), "-p", strconv.Itoa(iperfPort), "--forceflush")
}

// iperf sends load from a host for as long as that.
func iperf(ctx context.Context, from *lab.Host, to netip.Addr, l load, long time.Duration) (received, error) {
	ctx, cancel := context.WithTimeout(ctx, long+30*time.Second)
	defer cancel()
	out, err := from.Run(ctx, "iperf3", l.arguments(to, long)...)
	if err != nil {
		return received{}, err
	}
	r, err := parseIperf([]byte(out.Stdout), l)
	if err != nil {
		return received{}, fmt.Errorf("run iperf3 from %s to %s: %w %s", from.Name, to, err, strings.TrimSpace(out.Stderr))
	}
	return r, nil
}

func parseIperf(answer []byte, l load) (received, error) {
	var a struct {
		Error string
		End   struct {
			Received struct{ Seconds, Bytes float64 } `json:"sum_received"`
		}
	}
	if err := json.Unmarshal(answer, &a); err != nil {
		return received{}, fmt.Errorf("read answer: %w", err)
	}
	if a.Error != "" {
		return received{}, errors.New(a.Error)
	}
	if a.End.Received.Seconds <= 0 || a.End.Received.Bytes <= 0 {
		return received{}, errors.New("nothing was received")
	}
	r := received{amount: a.End.Received.Bytes * 8 / 1e9}
	if l.udp {
		r.amount = a.End.Received.Bytes / float64(l.size) / 1000
	}
	r.rate = r.amount / a.End.Received.Seconds
	return r, nil
}

// costUnit is CPU time of both ends by what was received.
func (l load) costUnit() string {
	if l.udp {
		return "µs/packet"
	}
	return "s/Gbit"
}
