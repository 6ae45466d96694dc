package lab

import (
	"fmt"
	"net/netip"
	"strconv"
)

// A switch has two halves, so that a partition moves ports to the other one.
const (
	joined = "joined"
	apart  = "apart"
)

// Switch connects hosts by Ethernet.
type Switch struct {
	Name  string
	world *World
	ns    namespace
}

// Link is the cable between a host and a switch. Its methods are not for concurrent use.
type Link struct {
	Interface string // on the host: eth0, eth1, …
	host      *Host
	sw        *Switch
	port      string  // on the switch
	lossy     float64 // as the rule in force says
}

// Connect plugs a host in and gives it these addresses on that link.
func (s *Switch) Connect(h *Host, addrs ...netip.Prefix) (*Link, error) {
	l := &Link{host: h, sw: s, port: s.world.port(), Interface: h.nextInterface()}
	err := s.ns.ip(
		"link add "+l.port+" type veth peer name "+l.Interface+" netns "+string(h.ns),
		"link set "+l.port+" master "+joined+" up",
	)
	if err != nil {
		return nil, fmt.Errorf("connect %s to %s: %w", h.Name, s.Name, err)
	}
	commands := []string{"link set " + l.Interface + " up"}
	for _, a := range addrs {
		add := "addr add " + a.String() + " dev " + l.Interface
		if a.Addr().Is6() {
			add += " nodad"
		}
		commands = append(commands, add)
	}
	if err := h.ns.ip(commands...); err != nil {
		return nil, fmt.Errorf("connect %s to %s: %w", h.Name, s.Name, err)
	}
	h.addLink(l, addrs)
	return l, nil
}

// Cut takes the carrier away. The host keeps its addresses.
func (l *Link) Cut() error { return l.sw.ns.ip("link set " + l.port + " down") }

// Heal ends what Cut and Part did.
func (l *Link) Heal() error {
	return l.sw.ns.ip("link set "+l.port+" master "+joined, "link set "+l.port+" up")
}

// Part moves the link to the other half of its switch: it reaches only those that were parted too.
func (l *Link) Part() error { return l.sw.ns.ip("link set " + l.port + " master " + apart) }

// Lose drops this share of the packets that come to the host over the link, from 0 to 1.
func (l *Link) Lose(share float64) error {
	rule := func(do string, share float64) error {
		for _, iptables := range []string{"iptables", "ip6tables"} {
			err := l.host.ns.exec(iptables, "-w", "-t", "raw", do, "PREROUTING", "-i", l.Interface, "-m", "statistic",
				"--mode", "random", "--probability", strconv.FormatFloat(share, 'f', 4, 64), "-j", "DROP")
			if err != nil {
				return err
			}
		}
		return nil
	}
	if l.lossy > 0 {
		if err := rule("-D", l.lossy); err != nil {
			return err
		}
	}
	l.lossy = share
	if share == 0 {
		return nil
	}
	return rule("-A", share)
}

// Limit bounds the link's bandwidth in both directions, in bits per second; 0 is no limit.
func (l *Link) Limit(bits uint64) error {
	for _, end := range []struct {
		ns   namespace
		name string
	}{{l.host.ns, l.Interface}, {l.sw.ns, l.port}} {
		args := []string{"qdisc", "replace", "dev", end.name, "root", "tbf", "rate", fmt.Sprint(bits), "burst", "64kb", "latency", "50ms"}
		if bits == 0 {
			args = []string{"qdisc", "delete", "dev", end.name, "root"}
		}
		if err := end.ns.exec("tc", args...); err != nil {
			return err
		}
	}
	return nil
}
