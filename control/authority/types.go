package authority

import (
	"crypto/x509"
	"errors"
	"net/netip"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// Role is what a principal may do; each role may do what those before it may.
type Role string

// The roles: viewers read; operators change policy, segments, rules and labels, revoke agents and make
// join tokens; admins also make control and API tokens, revoke hosts and manage operators.
const (
	RoleViewer   Role = "viewer"
	RoleOperator Role = "operator"
	RoleAdmin    Role = "admin"
)

func (r Role) rank() int {
	switch r {
	case RoleViewer:
		return 1
	case RoleOperator:
		return 2
	case RoleAdmin:
		return 3
	default:
		return 0
	}
}

// Allows reports whether a principal of role r may do what needs role need. Unknown roles allow nothing
// and are needed by nothing.
func (r Role) Allows(need Role) bool { return need.rank() > 0 && r.rank() >= need.rank() }

// Principal is who asks: "local/root", "operator/alice", "host/h2" or "token/ID".
type Principal struct {
	Name string
	Role Role
	From string // the address or socket the request came from
}

// Code says what kind of refusal an Error is.
type Code = string

// The codes of Error. Append only: programs branch on them.
const (
	CodeDenied            Code = "denied"
	CodeInvalid           Code = "invalid"
	CodeNotFound          Code = "not-found"
	CodeExists            Code = "exists"
	CodeNameTaken         Code = "name-taken"
	CodeRevoked           Code = "revoked"
	CodeVersionConflict   Code = "version-conflict"
	CodePolicyRefused     Code = "policy-refused"
	CodeTestsFailed       Code = "tests-failed"
	CodeTokenUnknown      Code = "token-unknown"
	CodeTokenExpired      Code = "token-expired"
	CodeTokenUsed         Code = "token-used"
	CodeTokenTampered     Code = "token-tampered"
	CodeLabelOutsideGrant Code = "label-outside-grant"
	CodeClockSkew         Code = "clock-skew"
	CodeExhausted         Code = "exhausted"
)

// Error is a refusal that the one who asked can understand and mend. Every other error is a fault of ours.
type Error struct {
	Code     Code
	Field    string // the request's field at fault, empty if none is
	Message  string
	Fix      string
	Problems []segment.Problem    // of a refused policy
	Tests    []segment.TestResult // of a policy whose tests fail
}

// Error is the message, then the fix.
func (e *Error) Error() string {
	s := e.Message
	if e.Field != "" {
		s = e.Field + ": " + s
	}
	if e.Fix != "" {
		s += " (fix: " + e.Fix + ")"
	}
	return s
}

var (
	// ErrExists is returned by Init when the store already holds a mesh.
	ErrExists = &Error{Code: CodeExists, Message: "there is a mesh in this store already",
		Fix: "use it, or choose another state directory"}
	// ErrNoMesh is returned by Open when the store holds no mesh: this host is not a control host.
	ErrNoMesh = errors.New("no mesh in this store")
	// ErrTampered is returned by ParseToken for a token that is not, to the bit, one that was created.
	ErrTampered = &Error{Code: CodeTokenTampered, Field: "token", Message: "the token is damaged or was changed",
		Fix: "copy it again, whole; it starts with " + tokenPrefix}
)

// TokenRequest says what a new token is good for.
type TokenRequest struct {
	Uses    int            `json:"uses,omitempty"`    // enrolments; 0 is 1
	TTL     time.Duration  `json:"ttl,omitempty"`     // 0 is one hour, 30 days for an API token
	Grant   segment.Labels `json:"grant,omitempty"`   // labels that the host's agents may claim
	Control bool           `json:"control,omitempty"` // the host becomes a control host
	Role    Role           `json:"role,omitempty"`    // not empty: an API bearer token with this role, no join token
}

// CreatedToken is the one time that a token's secret is seen.
type CreatedToken struct {
	ID      string    `json:"id"`
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// TokenInfo describes a token without its secret.
type TokenInfo struct {
	ID      string         `json:"id"`
	Created time.Time      `json:"created"`
	Author  string         `json:"author"`
	Expires time.Time      `json:"expires"`
	Uses    int            `json:"uses"` // allowed; 0 for API tokens, which do not wear out
	Used    int            `json:"used"`
	Grant   segment.Labels `json:"grant,omitempty"`
	Control bool           `json:"control,omitempty"`
	Role    Role           `json:"role,omitempty"`
}

// AgentRequest asks for the certificate of one agent. Labels count at enrolment only.
type AgentRequest struct {
	Name   string         `json:"name"`
	Labels segment.Labels `json:"labels,omitempty"`
	CSR    []byte         `json:"csr"` // DER
}

// EnrollRequest is what a joining host sends.
type EnrollRequest struct {
	TokenID   string         `json:"tokenId"`
	Secret    []byte         `json:"secret"`
	Host      string         `json:"host"`
	HostCSR   []byte         `json:"hostCsr"`   // DER
	WireGuard []byte         `json:"wireguard"` // public key: the host's for as long as it is in the mesh
	Time      time.Time      `json:"time"`      // the joiner's clock
	Agents    []AgentRequest `json:"agents,omitempty"`
}

// RenewRequest is what an enrolled host sends to renew its certificate and those of its agents. The WireGuard key
// that it enrolled with stays.
type RenewRequest struct {
	HostCSR []byte         `json:"hostCsr"` // DER
	Agents  []AgentRequest `json:"agents,omitempty"`
	From    string         `json:"-"` // for the audit record
}

// DeclareRequest is what an enrolled host sends to have more agents.
type DeclareRequest struct {
	Agents []AgentRequest `json:"agents"`
	From   string         `json:"-"` // for the audit record
}

// Declared is the answer to a DeclareRequest: each agent of it is in one of the lists.
type Declared struct {
	Agents  []AgentChain `json:"agents"`
	Pending []string     `json:"pending"` // until an operator approves them they have no certificate, and reach nothing
}

// WithdrawRequest is what an enrolled host sends to give agents up.
type WithdrawRequest struct {
	Agents []string `json:"agents"` // names
	From   string   `json:"-"`      // for the audit record
}

// JWTRequest is what an enrolled host sends for a JWT-SVID of one of its agents.
type JWTRequest struct {
	Agent    string   `json:"agent"`
	Audience []string `json:"audience"`
	From     string   `json:"-"` // for the audit record
}

// ApproveRequest says what an operator approves of. An empty field is not compared.
type ApproveRequest struct {
	Host   string         `json:"host,omitempty" maxLength:"63" doc:"refuse unless it is this host's agent"`
	Labels segment.Labels `json:"labels,omitempty" doc:"refuse unless these are its labels"`
}

// AgentChain is the certificate chain of one agent: DER, leaf first, without the root.
type AgentChain struct {
	Name  string   `json:"name"`
	Chain [][]byte `json:"chain"`
}

// Enrollment is all a host needs to take part.
type Enrollment struct {
	Mesh         string         `json:"mesh"`
	HostChain    [][]byte       `json:"hostChain"` // DER, leaf first, without the root
	Agents       []AgentChain   `json:"agents"`
	Roots        [][]byte       `json:"roots"`        // DER
	Policy       []byte         `json:"policy"`       // the current signed bundle
	Prefixes     []netip.Prefix `json:"prefixes"`     // overlay IPv4, IPv6
	ControlHosts []string       `json:"controlHosts"` // names, sorted
}

// HostInfo is what the registry knows of a host.
type HostInfo struct {
	Name    string     `json:"name"`
	Agents  []string   `json:"agents"` // active ones, sorted
	Joined  time.Time  `json:"joined"`
	Expires time.Time  `json:"expires"` // of its newest certificate
	Control bool       `json:"control,omitempty"`
	Revoked *time.Time `json:"revoked,omitempty"`
}

// AgentInfo is what the registry knows of an agent.
type AgentInfo struct {
	segment.Agent
	Pending bool       `json:"pending,omitempty"` // no operator has approved it yet
	Expires time.Time  `json:"expires"`           // of its newest certificate; zero if it has had none
	Revoked *time.Time `json:"revoked,omitempty"`
}

// VersionInfo describes one policy version.
type VersionInfo struct {
	Version uint64    `json:"version"`
	Issued  time.Time `json:"issued"`
	Author  string    `json:"author"`
	Digest  string    `json:"digest"` // SHA-256, hex
	Summary string    `json:"summary"`
}

// Change is the answer to a change of policy.
type Change struct {
	Version    uint64               `json:"version"`
	Unchanged  bool                 `json:"unchanged,omitempty"` // nothing differed: no new version was made
	Difference segment.Difference   `json:"difference"`
	Tests      []segment.TestResult `json:"tests,omitempty"`
}

// CheckResult is what PutPolicy would say of a document.
type CheckResult struct {
	Version    uint64               `json:"version"` // that it was compared with
	OK         bool                 `json:"ok"`      // PutPolicy would accept it
	Unchanged  bool                 `json:"unchanged,omitempty"`
	Problems   []segment.Problem    `json:"problems,omitempty"`
	Difference segment.Difference   `json:"difference"`
	Tests      []segment.TestResult `json:"tests,omitempty"`
	Policy     *segment.Policy      `json:"-"` // parsed; nil if there are problems
}

// Founding is what Init hands to its caller alone.
type Founding struct {
	Root    *x509.Certificate
	RootKey identity.Key // signs nothing from now on: store it as a file that may be moved away
	Bundle  []byte       // policy version 1
}
