package overlay

import (
	"context"
	"fmt"

	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
)

// received verifies one frame of a pull's answer and hands it to the loop. It runs in a pull worker, because others
// decide how much there is to verify. It says whether the frame was asked for and is news.
func (m *Mesh) received(ctx context.Context, p *pulled) (news bool) {
	switch p.kind {
	case frameRecord:
		return m.receivedRecord(ctx, p)
	case framePolicy:
		return m.receivedPolicy(ctx, p)
	default:
		m.deliver(ctx, func() { _ = m.refuse("frame", p.from, errFrame) })
		return false
	}
}

func (m *Mesh) receivedRecord(ctx context.Context, p *pulled) (news bool) {
	s := m.Snapshot()
	r, err := signed.OpenRecord(p.raw, s.Trust, m.options.Now())
	switch {
	case err != nil:
	case p.seen[r.Host], p.asked.Have == nil && !contains(p.asked.Want, r.Host):
		err = fmt.Errorf("record of %s: %w", r.Host, errUseless)
	default:
		p.seen[r.Host] = true
		m.deliver(ctx, func() { _ = m.stage(r, p.from) })
		return s.Records[r.Host] == nil || r.Sequence > s.Records[r.Host].Sequence
	}
	m.deliver(ctx, func() { _ = m.refuse("record", p.from, err) })
	return false
}

func (m *Mesh) receivedPolicy(ctx context.Context, p *pulled) (news bool) {
	const policy = "" // in seen
	v, err := signed.OpenPolicy(p.raw, m.Snapshot().Trust, m.options.Now())
	if err == nil && p.seen[policy] {
		err = fmt.Errorf("policy version %d: %w", v.Version, errUseless)
	}
	if err != nil {
		m.deliver(ctx, func() { _ = m.refuse("policy", p.from, err) })
		return false
	}
	p.seen[policy] = true
	m.deliver(ctx, func() { _ = m.takePolicy(v, p.from) })
	return v.Version > p.asked.PolicyVersion
}
