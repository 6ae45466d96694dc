package gossip

import (
	"bufio"
	"fmt"

	"github.com/hashicorp/memberlist"
)

// pushPull reads one push/pull from a proven sender and returns it with only the node states that
// may pass. An error means that the whole of it is refused.
func (in *inspector) pushPull(from string, r *bufio.Reader) ([]byte, findings, error) {
	var f findings
	refuse := func(why reason, evidence []byte, err error) ([]byte, findings, error) {
		f.refuse(why, evidence)
		return nil, f, fmt.Errorf("inspect push/pull from %q: %s: %w", from, why, err)
	}
	if !in.sender(&f, from, nil) {
		return nil, f, fmt.Errorf("inspect push/pull from %q: %w", from, errSender)
	}
	kind, err := r.ReadByte()
	if err != nil {
		return nil, f, fmt.Errorf("read push/pull from %q: %w", from, err)
	}
	if messageType(kind) != pushPullType {
		return refuse(reasonType, []byte{kind}, errMalformed)
	}
	object, err := readObject(r)
	if err != nil {
		return refuse(reasonMalformed, object, err)
	}
	var header pushPullHeader
	if err := unmarshal(object, &header); err != nil {
		return refuse(reasonMalformed, object, err)
	}
	if header.Nodes < 0 || header.Nodes > in.states() || header.UserStateLen != 0 {
		return refuse(reasonOversized, object, errMalformed)
	}
	out := make(map[string]bool)
	for range header.Nodes {
		object, err := readObject(r)
		if err != nil {
			return refuse(reasonMalformed, object, err)
		}
		var state nodeState
		if err := unmarshal(object, &state); err != nil {
			return refuse(reasonMalformed, object, err)
		}
		in.nodeState(&f, out, from, state, object)
	}
	body, err := encodePushPull(header.Join, f.pass)
	f.pass = nil
	return body, f, err
}

// nodeState judges one entry of a push/pull; seen holds the hosts that passed before it.
func (in *inspector) nodeState(f *findings, seen map[string]bool, from string, s nodeState, evidence []byte) {
	why := in.correctState(&s, from)
	if why == "" && seen[s.Name] {
		why = reasonDuplicate
	}
	if why == "" {
		seen[s.Name] = true
		if why = in.acceptState(f, from, s); why == "" {
			return
		}
	}
	f.refuse(why, evidence)
	if why != reasonUnknownHost || s.State != int(memberlist.StateAlive) {
		return
	}
	message, err := encode(aliveType, &alive{s.Incarnation, s.Name, s.Addr, s.Port, s.Meta, s.Vsn})
	if err == nil {
		f.unknown = append(f.unknown, mention{s.Name, message})
	}
}

// acceptState adds an entry that may pass; an accusation of another becomes one of its own.
func (in *inspector) acceptState(f *findings, from string, s nodeState) reason {
	if s.State == int(memberlist.StateSuspect) && s.Name != in.self {
		b, err := encode(suspectType, &suspect{s.Incarnation, s.Name, from})
		if err != nil {
			return reasonMalformed
		}
		f.accused = append(f.accused, accusation{s.Name, from, b})
		return ""
	}
	b, err := encode(0, &s)
	if err != nil {
		return reasonMalformed
	}
	f.pass = append(f.pass, b[1:])
	return ""
}

// correctState applies to an entry what message applies to the same claim in a packet.
func (in *inspector) correctState(s *nodeState, from string) reason {
	switch memberlist.NodeStateType(s.State) {
	case memberlist.StateAlive:
		m := alive{s.Incarnation, s.Name, s.Addr, s.Port, s.Meta, s.Vsn}
		why := in.alive(&m)
		s.Meta = m.Meta
		return why
	case memberlist.StateLeft:
		m := dead{s.Incarnation, s.Name, s.Name}
		if why := in.dead(&m, from); why != "" {
			return why
		}
		if m.From != m.Node {
			s.State = int(memberlist.StateSuspect)
		}
	case memberlist.StateSuspect, memberlist.StateDead:
		m := suspect{s.Incarnation, s.Name, from}
		if why := in.suspect(&m, from); why != "" {
			return why
		}
		s.State = int(memberlist.StateSuspect)
	default:
		return reasonMalformed
	}
	// memberlist checks the versions of entries whatever their state.
	s.Addr, s.Port, s.Meta, s.Vsn = address(s.Name), gossipPort, nil, versions
	return ""
}

func encodePushPull(join bool, states [][]byte) ([]byte, error) {
	body, err := encode(pushPullType, &pushPullHeader{Nodes: len(states), Join: join})
	if err != nil {
		return nil, err
	}
	for _, s := range states {
		body = append(body, s...)
	}
	return body, nil
}
