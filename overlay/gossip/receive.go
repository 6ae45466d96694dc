package gossip

import (
	"bufio"
	"context"
	"net"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

const (
	// spareStates is how many more hosts a push/pull may name than we know: a host that joins knows few.
	spareStates    = 4096
	streamCost     = 50 // messages that one push/pull counts as
	typicalMessage = 64 // bytes
)

// HandleDatagram takes a packet from a host whose name was proven. It never blocks.
func (g *Gossip) HandleDatagram(from string, payload []byte) { g.packet(from, payload) }

func (g *Gossip) packet(from string, b []byte) {
	t := g.running.Load()
	if t == nil {
		g.refusals.add(from, reasonStopped, b)
		return
	}
	if !g.senders.allow(from, 1+len(b)/typicalMessage) {
		g.refusals.add(from, reasonBusy, b)
		return
	}
	f := g.inspector.packet(from, b)
	if g.opts.Known(from) {
		g.accusations.heard(from, true, time.Now())
	}
	g.report(t, from, f)
	for _, message := range f.pass {
		g.deliver(t, from, message)
	}
}

func (g *Gossip) deliver(t *transport, from string, message []byte) {
	if !t.deliver(from, message) {
		g.refusals.add(from, reasonBusy, message)
	}
}

// HandleStream takes a push/pull from a host whose name was proven, and returns when it is over.
func (g *Gossip) HandleStream(ctx context.Context, from string, stream overlay.Stream) {
	defer func() { _ = stream.Close() }()
	t := g.running.Load()
	if t == nil {
		g.refusals.add(from, reasonStopped, nil)
		return
	}
	if !g.senders.enter(from) {
		g.refusals.add(from, reasonBusy, nil)
		return
	}
	defer g.senders.leave(from)
	if err := stream.SetDeadline(time.Now().Add(streamTimeout)); err != nil {
		return
	}
	unwatch := context.AfterFunc(t.ctx, func() { _ = stream.Close() })
	body, err := g.pushPull(t, from, bufio.NewReader(stream))
	unwatch()
	if err == nil {
		t.accept(ctx, from, stream, body)
	}
}

// pushPull inspects one push/pull, whoever opened the stream.
func (g *Gossip) pushPull(t *transport, from string, r *bufio.Reader) ([]byte, error) {
	body, f, err := g.inspector.pushPull(from, r)
	g.report(t, from, f)
	if err != nil {
		g.opts.Logger.Debug("refuse push/pull", "host", from, "error", err)
		return nil, err
	}
	g.accusations.heard(from, true, time.Now())
	return body, nil
}

// report draws the consequences of an inspection other than handing on what passed.
func (g *Gossip) report(t *transport, from string, f findings) {
	now := time.Now()
	for _, r := range f.refused {
		g.refusals.add(from, r.reason, r.evidence)
	}
	for _, m := range f.unknown {
		if g.mentions.put(from, m, now) {
			g.notices.mention(m.host, from)
		}
	}
	for _, c := range f.accused {
		if !g.notices.isMember(c.host) {
			continue // memberlist would have nothing to do
		}
		switch g.accusations.add(c, now) {
		case contradicted:
			g.refusals.add(from, reasonContradicted, c.message)
		case confirmed:
			g.deliver(t, from, c.message)
		}
	}
}

// startIncarnation makes memberlist, which counts from zero, go on from the clock: it refutes a
// suspicion by going one beyond it.
func (g *Gossip) startIncarnation(t *transport) error {
	m := suspect{Incarnation: g.inspector.limit(-1), Node: g.opts.Host, From: g.opts.Host}
	message, err := encode(suspectType, &m)
	if err != nil {
		return err
	}
	t.deliver(g.opts.Host, message)
	return nil
}

func (g *Gossip) newTransport(ctx context.Context, stop context.CancelFunc) *transport {
	t := &transport{
		ctx: ctx, stop: stop, host: g.opts.Host, network: g.opts.Network, known: g.opts.Known,
		pinged:  func(host string, packet []byte) { g.asked.note(host, packet, time.Now()) },
		packets: make(chan *memberlist.Packet, packetQueue),
		streams: make(chan net.Conn),
	}
	t.answer = func(from string, r *bufio.Reader) ([]byte, error) { return g.pushPull(t, from, r) }
	return t
}

// config returns memberlist's settings. No keys and no compression: the connections below are
// encrypted, and both are ways to hide a message from inspection.
func (g *Gossip) config(t *transport) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = g.opts.Host
	c.Transport = t
	c.Delegate, c.Events = &g.delegate, g.notices
	c.Logger = newLog(g.opts.Logger)
	c.BindPort, c.AdvertisePort = gossipPort, gossipPort
	c.ProtocolVersion = versions[2]
	c.DelegateProtocolMin, c.DelegateProtocolMax, c.DelegateProtocolVersion = versions[3], versions[4], versions[5]
	c.EnableCompression = false
	c.RequireNodeNames = true
	c.DisableTcpPings = true           // a stream that works over a dead datagram path would hide it
	c.UDPBufferSize = 1100 - crcHeader // memberlist adds the checksum after filling the packet
	c.GossipInterval = 200 * time.Millisecond
	c.SuspicionMaxTimeoutMult = 3 // a death is known after 15 s at the latest in a small mesh
	c.AwarenessMaxMultiplier = 4
	c.PushPullInterval = 30 * time.Second
	c.TCPTimeout = streamTimeout
	c.HandoffQueueDepth = 1024
	g.tune(c)
	return c
}

// deliver hands a message that was inspected to memberlist, or says that its queue is full.
func (t *transport) deliver(from string, message []byte) bool {
	select {
	case t.packets <- &memberlist.Packet{Buf: message, From: addr(from), Timestamp: time.Now()}:
		return true
	default:
		return false
	}
}
