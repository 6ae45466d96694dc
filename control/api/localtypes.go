package api

import (
	"net/netip"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// AgentState says what keeps an agent from taking part, if anything does.
type AgentState string

// The states of agents. In the mesh an agent is active, pending or revoked; its own host knows the others, too.
const (
	AgentActive   AgentState = "active"   // it has a certificate, and on its own host processes
	AgentPending  AgentState = "pending"  // it reaches nothing until an operator approves it
	AgentRevoked  AgentState = "revoked"  // its certificates are void
	AgentWaiting  AgentState = "waiting"  // none of its processes runs
	AgentDeclared AgentState = "declared" // control has not answered yet: the problem says why
)

// Source says who declared an agent of this host, and so who may take it away.
type Source string

// The sources of agents.
const (
	SourceJoin   Source = "join"   // `bulkhead init` or `join`
	SourceCLI    Source = "cli"    // `bulkhead agent add`
	SourceConfig Source = "config" // the configuration file
	SourceRun    Source = "run"    // `bulkhead run --label`, for as long as that runs
)

// AgentDeclaration declares an agent of this host.
type AgentDeclaration struct {
	Name   string         `json:"name" minLength:"1" maxLength:"63"`
	Labels segment.Labels `json:"labels,omitempty"`
	Match  overlay.Match  `json:"match" doc:"which processes of this host are the agent: exactly one member"`
}

// LocalAgent is an agent of this host, as this host sees it.
type LocalAgent struct {
	Name        string         `json:"name"`
	State       AgentState     `json:"state" enum:"active,pending,waiting,declared"`
	Labels      segment.Labels `json:"labels"`
	Addresses   []netip.Addr   `json:"addresses" doc:"overlay IPv4, then IPv6"`
	Segments    []string       `json:"segments"`
	Match       overlay.Match  `json:"match"`
	Processes   bool           `json:"processes" doc:"something on this host matches"`
	Problem     string         `json:"problem,omitempty" doc:"why nothing matches, or why control has not answered"`
	Source      Source         `json:"source" enum:"join,cli,config,run"`
	NotEnforced []string       `json:"notEnforced" doc:"what this host cannot enforce of this agent, and why"`
}

// Whois is who is behind an overlay address.
type Whois struct {
	Agent         string         `json:"agent"`
	Host          string         `json:"host"`
	Labels        segment.Labels `json:"labels"`
	Segments      []string       `json:"segments"`
	Addresses     []netip.Addr   `json:"addresses" doc:"overlay IPv4, then IPv6"`
	ID            string         `json:"id" doc:"SPIFFE ID"`
	Certificate   string         `json:"certificate" doc:"SHA-256 of its certificate, DER, hex"`
	Expires       time.Time      `json:"expires" doc:"of that certificate"`
	PolicyVersion uint64         `json:"policyVersion" doc:"by which the segments were told"`
}

// Asker is the process at the other end of a connection to the agents' socket, as the kernel says.
type Asker struct {
	Agent string // empty: it is none
	UID   int
	PID   int

	Verify func() error // nil, or why PID may be another process's by now
}

// RunRequest asks to make the asking process, and all that it starts, an agent's.
type RunRequest struct {
	Agent  string         `json:"agent" minLength:"1" maxLength:"63"`
	Labels segment.Labels `json:"labels,omitempty" doc:"declare the agent with these for as long as it runs"`
}

// RunScope is what the process has become.
type RunScope struct {
	Agent     string       `json:"agent"`
	Addresses []netip.Addr `json:"addresses" doc:"overlay IPv4, then IPv6"`
}
