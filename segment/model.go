package segment

import (
	"net/netip"
	"time"
)

// Labels are the key=value facts policy selects agents by.
type Labels map[string]string

// LabelFunction and LabelSensitivity are the two built-in label keys.
const (
	LabelFunction    = "function"
	LabelSensitivity = "sensitivity"
)

// Agent is what policy knows of an agent.
type Agent struct {
	Name      string       `json:"name"`
	Host      string       `json:"host"`
	Labels    Labels       `json:"labels"`
	Addresses []netip.Addr `json:"addresses"` // overlay IPv4, then IPv6
}

// Policy is the document operators write: what no rule allows is denied.
type Policy struct {
	Sensitivity []string  `json:"sensitivity,omitempty"` // lowest first
	Segments    []Segment `json:"segments,omitempty"`
	Rules       []Rule    `json:"rules,omitempty"`
	Tests       []Test    `json:"tests,omitempty"`
}

// Segment is a named set of agents, chosen by their labels.
type Segment struct {
	Name        string   `json:"name"`
	Description string   `json:"description,omitempty"`
	Match       Selector `json:"match"`
	Egress      Guard    `json:"egress,omitzero"` // what its agents may reach outside the overlay
}

// Rule lets agents of From open Allow to agents of To.
type Rule struct {
	Name    string     `json:"name"`
	From    string     `json:"from"`
	To      string     `json:"to"`
	Allow   []Ports    `json:"allow"`
	Crosses string     `json:"crosses,omitempty"` // why data may pass between sensitivities
	Until   *time.Time `json:"until,omitempty"`
}

// Test is an expectation that a policy must meet to be accepted.
type Test struct {
	From   string `json:"from"` // agent/NAME
	To     string `json:"to"`
	Port   Port   `json:"port"`
	Expect string `json:"expect"` // allow or deny
}

// Ruleset is the compiled policy of one host: the pairs of agents that may talk, and what each may open.
// It is immutable; two rulesets share the *Pair values that did not change between them.
type Ruleset struct {
	Host       string
	Pairs      []*Pair   // sorted by local, then remote agent name
	NextExpiry time.Time // when a grant ends next; zero if none does
}

// Pair holds the grants between one agent of this host and one agent elsewhere.
type Pair struct {
	Local, Remote Agent
	In            []Grant // what Remote may open to Local
	Out           []Grant // what Local may open to Remote
}

// Grant is one allowed protocol and port range, and the rule that allows it.
type Grant struct {
	Ports Ports
	Rule  string
	Until time.Time // zero: no end
}
