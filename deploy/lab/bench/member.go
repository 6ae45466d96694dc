package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/overlay/tunnel"
)

const maxAnswer = 16 << 20 // bytes

// member is a host of the crowd that has enrolled.
type member struct {
	host      string
	key       identity.Key
	wireguard [32]byte // public
	enrolled  *api.Enrolled
}

// enrolMember makes keys for a host with that many agents, gets a token for it from control, and spends it.
func enrolMember(ctx context.Context, control *api.Client, socket string, number, agents int) (*member, error) {
	function := crowdFunction(number)
	created, err := control.CreateToken(ctx, api.TokenRequest{TTL: "10m", Grant: crowdLabels(function)})
	if err != nil {
		return nil, err
	}
	token, err := authority.ParseToken(created.Token)
	if err != nil {
		return nil, err
	}
	m := &member{host: "away-" + function}
	private, err := tunnel.GenerateKey()
	if err != nil {
		return nil, err
	}
	if m.wireguard, err = tunnel.PublicKey(private); err != nil {
		return nil, err
	}
	request := authority.EnrollRequest{TokenID: token.ID, Secret: token.Secret, Host: m.host, WireGuard: m.wireguard[:], Time: time.Now()}
	if m.key, request.HostCSR, err = newKey(identity.ID{Mesh: token.Mesh, Kind: identity.KindHost, Name: m.host}); err != nil {
		return nil, err
	}
	for i := range agents {
		name := fmt.Sprintf("%s-%d", function, i+1)
		_, csr, err := newKey(identity.ID{Mesh: token.Mesh, Kind: identity.KindAgent, Name: name})
		if err != nil {
			return nil, err
		}
		request.Agents = append(request.Agents, authority.AgentRequest{Name: name, Labels: crowdLabels(function), CSR: csr})
	}
	m.enrolled, err = enrol(ctx, socket, request)
	return m, err
}

func newKey(id identity.ID) (identity.Key, []byte, error) {
	key, err := identity.GenerateKey()
	if err != nil {
		return nil, nil, err
	}
	csr, err := identity.NewCSR(key, id)
	return key, csr, err
}

// enrol sends a request through control's socket, because this process is not in the network of the mesh;
// api.Enroll sends the same over TLS.
func enrol(ctx context.Context, socket string, r authority.EnrollRequest) (*api.Enrolled, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://local/v1/enroll", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := (&http.Client{Transport: transport, Timeout: patience}).Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("control answers %s: %s", answer.Status, text)
	}
	enrolled := new(api.Enrolled)
	return enrolled, json.Unmarshal(text, enrolled)
}

// record is what the member says about itself, signed: its agents, and no address, for it is away.
func (m *member) record() ([]byte, error) {
	leaf, err := x509.ParseCertificate(m.enrolled.HostChain[0])
	if err != nil {
		return nil, err
	}
	now := time.Now()
	r := signed.Record{
		Mesh: m.enrolled.Mesh, Host: m.host, Sequence: uint64(now.UnixMilli()), Issued: now, Expires: leaf.NotAfter,
		Certificate: m.enrolled.HostChain, WireGuard: m.wireguard,
	}
	for _, a := range m.enrolled.Agents {
		r.Agents = append(r.Agents, signed.AgentEntry{Name: a.Name, Certificate: a.Chain})
	}
	return signed.SignRecord(r, m.key)
}
