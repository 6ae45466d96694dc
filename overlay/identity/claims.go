package identity

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-mesh/bulkhead/segment"
)

// claimsOID is a random arc below 2.25, which needs no registration.
var claimsOID = asn1.ObjectIdentifier{2, 25, 1683021469, 1}

// Claims are what the authority says of an identity beyond its name. They are one X.509 extension, which is not
// critical: other programs can use the certificates, ours refuse one without it.
type Claims struct {
	Issued  time.Time         // whole seconds; revocations compare with it
	Host    string            // of an agent: the host that carries it
	Labels  map[string]string // of an agent
	Control bool              // of a host: has the control role
	Role    string            // of an operator: admin, operator or viewer

	// WireGuard is the public key of a host, which no other host may claim: zero for all else.
	WireGuard [32]byte
}

// claimsDER is the ASN.1 form. Labels are sorted by key, and no key is no bytes, so that claims have one form.
type claimsDER struct {
	Issued    time.Time `asn1:"generalized"`
	Host      string    `asn1:"utf8"`
	Labels    []labelDER
	Control   bool
	Role      string `asn1:"utf8"`
	WireGuard []byte
}

type labelDER struct {
	Key   string `asn1:"utf8"`
	Value string `asn1:"utf8"`
}

func marshalClaims(c Claims) ([]byte, error) {
	d := claimsDER{Issued: c.Issued.UTC().Truncate(time.Second), Host: c.Host, Control: c.Control, Role: c.Role}
	if c.WireGuard != [32]byte{} {
		d.WireGuard = c.WireGuard[:]
	}
	for k, v := range c.Labels {
		d.Labels = append(d.Labels, labelDER{k, v})
	}
	slices.SortFunc(d.Labels, func(a, b labelDER) int { return strings.Compare(a.Key, b.Key) })
	der, err := asn1.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encode claims: %w", err)
	}
	return der, nil
}

// parseClaims takes exactly what marshalClaims gives.
func parseClaims(der []byte) (Claims, error) {
	var d claimsDER
	rest, err := asn1.Unmarshal(der, &d)
	if err != nil {
		return Claims{}, fmt.Errorf("%w: claims: %w", ErrMalformed, err)
	}
	if len(rest) > 0 {
		return Claims{}, fmt.Errorf("%w: claims with trailing bytes", ErrMalformed)
	}
	c := Claims{Issued: d.Issued.UTC(), Host: d.Host, Control: d.Control, Role: d.Role}
	copy(c.WireGuard[:], d.WireGuard) // of another length it does not encode to the same bytes again
	if len(d.Labels) > 0 {
		c.Labels = make(map[string]string, len(d.Labels))
	}
	for _, l := range d.Labels {
		c.Labels[l.Key] = l.Value
	}
	if again, err := marshalClaims(c); err != nil || !bytes.Equal(again, der) {
		return Claims{}, fmt.Errorf("%w: claims are not in their one form", ErrMalformed)
	}
	return c, nil
}

// claimsOf finds the claims among a certificate's extensions: exactly once.
func claimsOf(extensions []pkix.Extension) (Claims, error) {
	var found [][]byte
	for _, e := range extensions {
		if e.Id.Equal(claimsOID) {
			found = append(found, e.Value)
		}
	}
	if len(found) != 1 {
		return Claims{}, fmt.Errorf("%w: %d claims extensions", ErrMalformed, len(found))
	}
	return parseClaims(found[0])
}

// suit checks that an identity of this kind may claim just this.
func (c *Claims) suit(kind Kind) error {
	of := func(owner Kind, given bool, what string) error {
		if given && kind != owner {
			return fmt.Errorf("%w: %s of a %s", ErrMalformed, what, kind)
		}
		return nil
	}
	for _, err := range []error{
		of(KindAgent, c.Host != "", "host"),
		of(KindAgent, len(c.Labels) > 0, "labels"),
		of(KindHost, c.Control, "control role"),
		of(KindOperator, c.Role != "", "role"),
		of(KindHost, c.WireGuard != [32]byte{}, "WireGuard key"),
	} {
		if err != nil {
			return err
		}
	}
	var err error
	switch kind {
	case KindHost:
		if c.WireGuard == [32]byte{} {
			err = errors.New("a host without WireGuard key")
		}
	case KindAgent:
		if err = segment.ValidName(c.Host); err == nil {
			err = segment.ValidLabels(c.Labels)
		}
	case KindOperator:
		err = segment.ValidName(c.Role)
	}
	if err != nil {
		return fmt.Errorf("%w: claims: %w", ErrMalformed, err)
	}
	return nil
}
