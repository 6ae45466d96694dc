package main

import (
	"fmt"
	"slices"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

const (
	crowdRules = 200
	// wideEvery such rule allows a port range that is too wide for set entries and gets an iptables rule of its own.
	wideEvery = 25
)

// measured are the functions of the two agents whose hosts are measured, and the names of their segments.
var measured = [2]string{"left", "right"}

func crowdFunction(host int) string { return fmt.Sprintf("f%d", host+1) }

func crowdLabels(function string) segment.Labels {
	return segment.Labels{segment.LabelFunction: function, segment.LabelSensitivity: "internal"}
}

// crowdPolicy has a segment for each function and rules that all concern one of the two measured agents: the first
// lets them measure, the others are between each of them and the crowd, in both directions and on several ports.
func crowdPolicy() *segment.Policy {
	p := &segment.Policy{}
	names := slices.Clone(measured[:])
	for i := range crowdHosts {
		names = append(names, crowdFunction(i))
	}
	for _, name := range names {
		p.Segments = append(p.Segments, segment.Segment{Name: name, Match: segment.Selector{
			segment.LabelFunction:    {Values: []string{name}},
			segment.LabelSensitivity: {Values: []string{"internal"}},
		}})
	}
	p.Rules = []segment.Rule{{
		Name: "measure", From: measured[0], To: measured[1],
		Allow: []segment.Ports{{Proto: segment.TCP, First: iperfPort, Last: iperfPort}, {Proto: segment.UDP, First: iperfPort, Last: iperfPort}, {Proto: segment.ICMP}},
	}}
	for i := range crowdRules - 1 {
		p.Rules = append(p.Rules, crowdRule(i))
	}
	return p
}

func crowdRule(i int) segment.Rule {
	port := uint16(6000 + i)
	r := segment.Rule{
		Name: fmt.Sprintf("r%d", i), From: measured[i%2], To: crowdFunction(i / 4 % crowdHosts),
		Allow: []segment.Ports{{Proto: segment.TCP, First: port, Last: port}, {Proto: segment.UDP, First: port, Last: port}},
	}
	if i%wideEvery == 0 {
		r.Allow = append(r.Allow, segment.Ports{Proto: segment.TCP, First: 20000, Last: 29999})
	}
	if i/2%2 == 1 {
		r.From, r.To = r.To, r.From
	}
	return r
}
