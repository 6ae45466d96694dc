package api

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"slices"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
)

// NameInput is the name in a path.
type NameInput struct {
	Name string `path:"name" maxLength:"63"`
}

// RevokeInput names what is revoked, and why.
type RevokeInput struct {
	NameInput
	Body RevokeRequest
}

func (s *Server) registerHosts() {
	register(s, operation("listHosts", http.MethodGet, "/v1/hosts", "All hosts", read),
		func(context.Context, *struct{}) (*answer[[]Host], error) {
			hosts, err := s.hosts()
			return &answer[[]Host]{hosts}, err
		})
	register(s, operation("getHost", http.MethodGet, "/v1/hosts/{name}", "One host", read),
		func(_ context.Context, in *NameInput) (*answer[Host], error) {
			hosts, err := s.hosts()
			if err != nil {
				return nil, err
			}
			for _, h := range hosts {
				if h.Name == in.Name {
					return &answer[Host]{h}, nil
				}
			}
			return nil, notFound("name", "host", in.Name, "`bulkhead host list` shows all")
		})
	register(s, operation("revokeHost", http.MethodPost, "/v1/hosts/{name}/revoke", "Void a host's certificates, and its agents'",
		govern),
		func(ctx context.Context, in *RevokeInput) (*answer[authority.Change], error) {
			change, err := s.options.Authority.RevokeHost(callerOf(ctx).Principal, in.Name, in.Body.Reason)
			return &answer[authority.Change]{change}, err
		})
}

// hosts are those that records tell of, and those that only the registry has.
func (s *Server) hosts() ([]Host, error) {
	byName := map[string]*Host{}
	host := func(name string) *Host {
		if byName[name] == nil {
			byName[name] = &Host{Name: name, Agents: []string{}}
		}
		return byName[name]
	}
	for _, r := range s.options.Local.Rollout(0).Hosts {
		h := host(r.Name)
		h.Alive, h.Enforced, h.Control = r.Alive, r.Enforced, r.Control
	}
	if s.options.Authority == nil {
		for _, a := range s.options.Local.Agents() {
			h := host(a.Host)
			h.Agents = append(h.Agents, a.Name)
		}
	} else {
		infos, err := s.options.Authority.Hosts()
		if err != nil {
			return nil, err
		}
		for _, info := range infos {
			h := host(info.Name)
			h.Agents = append(h.Agents, info.Agents...)
			h.Control, h.Joined, h.Expires, h.Revoked = info.Control, &info.Joined, &info.Expires, info.Revoked
		}
	}
	hosts := make([]Host, 0, len(byName))
	for h := range maps.Values(byName) {
		slices.Sort(h.Agents)
		hosts = append(hosts, *h)
	}
	slices.SortFunc(hosts, func(a, b Host) int { return cmp.Compare(a.Name, b.Name) })
	return hosts, nil
}
