package api

import (
	"net/netip"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// Status is what a host says about itself now.
type Status struct {
	Mesh               string            `json:"mesh"`
	Host               string            `json:"host"`
	Phase              string            `json:"phase" doc:"starting, fenced, ready, degraded, draining or stopped"`
	Reason             string            `json:"reason,omitempty" doc:"why the phase is not ready"`
	Version            string            `json:"version" doc:"of the daemon"`
	PolicyVersion      uint64            `json:"policyVersion" doc:"in force on this host; 0 if none is"`
	PolicyDigest       string            `json:"policyDigest,omitempty" doc:"SHA-256, hex"`
	PolicyIssued       *time.Time        `json:"policyIssued,omitempty"`
	PolicyAge          int64             `json:"policyAge" doc:"seconds since the policy was issued"`
	Agents             []StatusAgent     `json:"agents" doc:"on this host"`
	Peers              []Peer            `json:"peers" doc:"hosts with an agent that may talk to one here"`
	Hosts              HostCount         `json:"hosts"`
	Drops              map[string]uint64 `json:"drops" doc:"packets that the firewall dropped, by reason"`
	Refused            map[string]uint64 `json:"refused" doc:"records, policies and messages that were refused, by reason"`
	CertificateExpires time.Time         `json:"certificateExpires"`
	Control            *ControlStatus    `json:"control,omitempty" doc:"absent on hosts without the control role"`
	NotEnforced        []string          `json:"notEnforced" doc:"what this host cannot enforce, and why"`
}

// StatusAgent is an agent of this host.
type StatusAgent struct {
	Name        string         `json:"name"`
	Addresses   []netip.Addr   `json:"addresses" doc:"overlay IPv4, then IPv6"`
	Labels      segment.Labels `json:"labels"`
	Sensitivity string         `json:"sensitivity,omitempty"`
	Segments    []string       `json:"segments"`
}

// Peer is another host that the tunnel has.
type Peer struct {
	Name          string     `json:"name"`
	Path          string     `json:"path" doc:"how packets reach it, like \"direct 192.0.2.1:51900\"; empty while unknown"`
	LastHandshake *time.Time `json:"lastHandshake,omitempty"`
	RxBytes       uint64     `json:"rxBytes"`
	TxBytes       uint64     `json:"txBytes"`
	Agents        []string   `json:"agents"`
}

// HostCount counts the hosts of the mesh, this one included.
type HostCount struct {
	Known int `json:"known" doc:"with a valid record"`
	Alive int `json:"alive" doc:"that gossip believes alive"`
}

// ControlStatus describes the control role of a host.
type ControlStatus struct {
	Listen    string `json:"listen" doc:"TCP address of the API"`
	Authority bool   `json:"authority" doc:"the certificate authority is on this host"`
	Version   uint64 `json:"version" doc:"newest policy version"`
}

// Host is a host of the mesh. What only the authority knows is absent elsewhere.
type Host struct {
	Name     string     `json:"name"`
	Alive    bool       `json:"alive" doc:"gossip believes so"`
	Enforced uint64     `json:"enforced" doc:"policy version in its kernel, as it says; 0 if unknown"`
	Agents   []string   `json:"agents"`
	Control  bool       `json:"control,omitempty"`
	Joined   *time.Time `json:"joined,omitempty"`
	Expires  *time.Time `json:"expires,omitempty" doc:"of its newest certificate"`
	Revoked  *time.Time `json:"revoked,omitempty"`
}

// Agent is an agent of the mesh. What only the authority knows is absent elsewhere.
type Agent struct {
	Name      string         `json:"name"`
	Host      string         `json:"host"`
	Labels    segment.Labels `json:"labels"`
	Addresses []netip.Addr   `json:"addresses" doc:"overlay IPv4, then IPv6"`
	Segments  []string       `json:"segments"`
	State     AgentState     `json:"state" enum:"active,pending,revoked"`
	Expires   *time.Time     `json:"expires,omitempty" doc:"of its newest certificate"`
	Revoked   *time.Time     `json:"revoked,omitempty"`
}

// SegmentView is a segment and the agents that are in it now.
type SegmentView struct {
	segment.Segment
	Agents []string `json:"agents"`
}

// PolicyDocument is one signed policy version.
type PolicyDocument struct {
	Version  uint64          `json:"version"`
	Digest   string          `json:"digest" doc:"SHA-256 of the signed bytes, hex"`
	Issued   time.Time       `json:"issued"`
	Author   string          `json:"author"`
	Document string          `json:"document" doc:"YAML, as it was signed"`
	Policy   *segment.Policy `json:"policy" doc:"the same, parsed"`
	Revoked  []Revocation    `json:"revoked"`
}

// Revocation voids the certificates of one identity that were issued before a time.
type Revocation struct {
	ID     string    `json:"id" doc:"host/NAME, agent/NAME or operator/NAME"`
	Before time.Time `json:"before"`
	Reason string    `json:"reason,omitempty"`
}

// Check says what applying a document would do.
type Check struct {
	authority.CheckResult
	Reach []AgentReach `json:"reach" doc:"whom each agent whose reach changes could get to"`
}

// AgentReach is whom an agent can get to, directly and through others: its blast radius.
type AgentReach struct {
	Agent   string            `json:"agent"`
	Reached []segment.Reached `json:"reached"`
}

// Reach is the answer to a question about one agent.
type Reach struct {
	AgentReach
	PolicyVersion uint64 `json:"policyVersion"`
}

// Explanation says whether one agent may open a port of another, and why.
type Explanation struct {
	segment.Explanation
	From          string `json:"from" doc:"agent"`
	To            string `json:"to" doc:"agent"`
	Port          string `json:"port"`
	PolicyVersion uint64 `json:"policyVersion"`
}

// Rollout says which hosts enforce a policy version.
type Rollout struct {
	Version uint64        `json:"version"`
	Hosts   []RolloutHost `json:"hosts"`
	Done    bool          `json:"done" doc:"all hosts that are alive enforce it or a newer one"`
}

// RolloutHost is one host of a rollout.
type RolloutHost struct {
	Name     string `json:"name"`
	Enforced uint64 `json:"enforced" doc:"policy version in its kernel, as it says; 0 if unknown"`
	Alive    bool   `json:"alive"`
	Control  bool   `json:"control" doc:"it has the control role"`
}

// Event is something that happened, as this host saw it.
type Event struct {
	Time    time.Time `json:"time"`
	Kind    EventKind `json:"kind"`
	Host    string    `json:"host,omitempty" doc:"the host it is about"`
	Version uint64    `json:"version,omitempty" doc:"the policy version it is about"`
	Message string    `json:"message"`
}

// EventKind says what an event is about.
type EventKind string

// The kinds of events. Append only: programs branch on them.
const (
	EventPolicyApplied EventKind = "policy-applied"
	EventHostJoined    EventKind = "host-joined"
	EventHostAlive     EventKind = "host-alive"
	EventHostDead      EventKind = "host-dead"
	EventRevoked       EventKind = "revoked"
	EventDriftRepaired EventKind = "drift-repaired"
	EventRefused       EventKind = "refused"
	EventPhase         EventKind = "phase"
)

// TokenRequest says what a new token is good for.
type TokenRequest struct {
	Uses    int            `json:"uses,omitempty" minimum:"0" maximum:"10000" doc:"enrolments; 0 is 1"`
	TTL     string         `json:"ttl,omitempty" maxLength:"32" example:"1h" doc:"how long it may be used; empty: 1h, 720h for an API token"`
	Grant   segment.Labels `json:"grant,omitempty" doc:"labels that the agents of the joining host may claim"`
	Control bool           `json:"control,omitempty" doc:"the joining host gets the control role"`
	Role    authority.Role `json:"role,omitempty" enum:"admin,operator,viewer" doc:"makes an API bearer token with this role instead of a join token"`
}

// OperatorRequest asks for an operator certificate.
type OperatorRequest struct {
	Name string         `json:"name" minLength:"1" maxLength:"63"`
	Role authority.Role `json:"role" enum:"admin,operator,viewer"`
	CSR  []byte         `json:"csr" doc:"PKCS #10, DER"`
	TTL  string         `json:"ttl,omitempty" maxLength:"32" example:"720h" doc:"life of the certificate; empty: 720h"`
}

// OperatorCertificate is the answer to an OperatorRequest.
type OperatorCertificate struct {
	Chain [][]byte `json:"chain" doc:"DER, leaf first, without the root"`
	Roots [][]byte `json:"roots" doc:"DER"`
}

// Enrolled is the answer to a host that joined.
type Enrolled struct {
	authority.Enrollment
	Records [][]byte `json:"records" doc:"signed records by which it finds the mesh"`
}

// RevokeRequest says why an identity is revoked.
type RevokeRequest struct {
	Reason string `json:"reason,omitempty" maxLength:"256"`
}

// RollbackRequest names the version whose content shall be in force again.
type RollbackRequest struct {
	Version uint64 `json:"version" minimum:"1"`
}

// LabelsRequest replaces the labels of an agent.
type LabelsRequest struct {
	Labels segment.Labels `json:"labels"`
}
