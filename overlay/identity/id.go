package identity

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

// Kind is what an identity is.
type Kind string

// The kinds of identities.
const (
	KindHost     Kind = "host"
	KindAgent    Kind = "agent"
	KindOperator Kind = "operator"
	KindPolicy   Kind = "policy" // signs policy
)

// maxID is the longest mesh name (255 bytes), the longest kind and name (63), and what is between them.
const maxID = 512

// ID is a SPIFFE ID: spiffe://<mesh>/<kind>/<name>.
type ID struct {
	Mesh string
	Kind Kind
	Name string
}

// String is the URI form.
func (id ID) String() string { return "spiffe://" + id.Mesh + "/" + id.Path() }

// Path is the part after the mesh: "host/h2".
func (id ID) Path() string { return string(id.Kind) + "/" + id.Name }

var errID = errors.New("not an identity of a mesh")

// ParseID takes exactly the form that String gives.
func ParseID(s string) (ID, error) {
	rest, ok := strings.CutPrefix(s, "spiffe://")
	parts := strings.Split(rest, "/")
	if !ok || len(s) > maxID || len(parts) != 3 {
		return ID{}, fmt.Errorf("%w: %.80q", errID, s)
	}
	id := ID{Mesh: parts[0], Kind: Kind(parts[1]), Name: parts[2]}
	switch id.Kind {
	case KindHost, KindAgent, KindOperator, KindPolicy:
	default:
		return ID{}, fmt.Errorf("%w: unknown kind in %.80q", errID, s)
	}
	if err := segment.ParseMeshName(id.Mesh); err != nil {
		return ID{}, fmt.Errorf("%w: %w", errID, err)
	}
	if err := segment.ValidName(id.Name); err != nil {
		return ID{}, fmt.Errorf("%w: %w", errID, err)
	}
	return id, nil
}

func (id ID) url() *url.URL { return &url.URL{Scheme: "spiffe", Host: id.Mesh, Path: "/" + id.Path()} }
