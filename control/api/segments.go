package api

import (
	"context"
	"net/http"
	"slices"

	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// DeleteInput names what is deleted from the policy.
type DeleteInput struct {
	NameInput
	MatchInput
}

func (s *Server) registerSegments() {
	register(s, operation("listSegments", http.MethodGet, "/v1/segments", "All segments, and the agents in them", read),
		func(context.Context, *struct{}) (*answer[[]SegmentView], error) {
			segments, err := s.segments()
			return &answer[[]SegmentView]{segments}, err
		})
	register(s, operation("getSegment", http.MethodGet, "/v1/segments/{name}", "One segment, and the agents in it", read),
		func(_ context.Context, in *NameInput) (*answer[SegmentView], error) {
			segments, err := s.segments()
			if err != nil {
				return nil, err
			}
			for _, view := range segments {
				if view.Name == in.Name {
					return &answer[SegmentView]{view}, nil
				}
			}
			return nil, notFound("name", "segment", in.Name, "`bulkhead segment list` shows all")
		})
	register(s, operation("createSegment", http.MethodPost, "/v1/segments", "Add a segment to the policy", operate),
		func(ctx context.Context, in *struct {
			MatchInput
			Body segment.Segment
		}) (*answer[authority.Change], error) {
			match, err := in.version()
			if err != nil {
				return nil, err
			}
			c, err := s.options.Authority.CreateSegment(callerOf(ctx).Principal, match, in.Body)
			return &answer[authority.Change]{c}, err
		})
	register(s, operation("deleteSegment", http.MethodDelete, "/v1/segments/{name}", "Remove a segment that no rule uses", operate),
		func(ctx context.Context, in *DeleteInput) (*answer[authority.Change], error) {
			match, err := in.version()
			if err != nil {
				return nil, err
			}
			c, err := s.options.Authority.DeleteSegment(callerOf(ctx).Principal, match, in.Name)
			return &answer[authority.Change]{c}, err
		})
}

func (s *Server) segments() ([]SegmentView, error) {
	p, err := s.policy()
	if err != nil {
		return nil, err
	}
	agents, err := s.policyAgents()
	if err != nil {
		return nil, err
	}
	members := map[string][]string{}
	for _, a := range agents {
		for _, name := range p.Parsed.SegmentsOf(a) {
			members[name] = append(members[name], a.Name)
		}
	}
	views := make([]SegmentView, 0, len(p.Parsed.Segments))
	for _, seg := range p.Parsed.Segments {
		inside := append([]string{}, members[seg.Name]...)
		slices.Sort(inside)
		views = append(views, SegmentView{Segment: seg, Agents: inside})
	}
	return views, nil
}
