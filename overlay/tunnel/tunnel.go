package tunnel

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// Options of a tunnel.
type Options struct {
	TUN        *os.File // an opened, non-blocking TUN; New takes it over, also when it fails
	MTU        int      // bytes of an overlay packet
	Port       uint16   // UDP, both families; 0 means any
	PrivateKey [32]byte // WireGuard
	Logger     *slog.Logger
}

// Tunnel is this host's WireGuard device. It implements overlay.Tunnel.
type Tunnel struct {
	device *device.Device
	tun    *quietTUN
	bind   *splitBind
	paths  *pathTable
	own    [32]byte // public key
	logger *slog.Logger

	mu    sync.Mutex // one change at a time
	peers map[string][32]byte
	greet map[string][32]byte // peers of the first Apply that no handshake was opened with yet; nil before it
}

var _ overlay.Tunnel = (*Tunnel)(nil)

// New opens the socket and attaches WireGuard to the TUN, with no peer: nothing passes before Apply.
// WireGuard's workers run from here until Run returns or Close is called.
func New(o Options) (*Tunnel, error) {
	native, err := tun.CreateTUNFromFile(o.TUN, o.MTU)
	if err != nil {
		_ = o.TUN.Close()
		return nil, fmt.Errorf("open tunnel: TUN: %w", err)
	}
	draining, err := newDrainingTUN(native)
	if err != nil {
		_ = native.Close()
		return nil, fmt.Errorf("open tunnel: TUN: %w", err)
	}
	return newTunnel(draining, o)
}

func newTunnel(native tun.Device, o Options) (*Tunnel, error) {
	own, err := PublicKey(o.PrivateKey)
	if err == nil && o.PrivateKey == [32]byte{} {
		err = errors.New("the WireGuard private key is missing")
	}
	if err != nil {
		_ = native.Close()
		return nil, fmt.Errorf("open tunnel: %w", err)
	}
	t := &Tunnel{
		tun:    newQuietTUN(native),
		paths:  newPathTable(),
		own:    own,
		logger: o.Logger,
		peers:  map[string][32]byte{},
	}
	t.bind = newSplitBind(conn.NewStdNetBind(), t.paths)
	t.device = device.NewDevice(t.tun, t.bind, deviceLogger(o.Logger))
	err = t.device.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=%d\n", hex.EncodeToString(o.PrivateKey[:]), o.Port))
	if err == nil {
		err = t.device.Up()
	}
	if err != nil {
		t.Close()
		return nil, fmt.Errorf("open tunnel on UDP port %d: %w", o.Port, err)
	}
	return t, nil
}

// Run keeps paths healthy until ctx ends, then closes the tunnel. It returns an error when the
// device ends by itself, as it does when the TUN is gone.
func (t *Tunnel) Run(ctx context.Context) error {
	defer t.Close()
	ticker := time.NewTicker(healInterval)
	defer ticker.Stop()
	healer := healer{tunnel: t}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.device.Wait():
			return errors.New("run tunnel: the device has closed; is the TUN interface gone?")
		case <-ticker.C:
			if err := healer.tick(); err != nil {
				t.logger.Warn("tunnel paths not checked", "error", err)
			}
		}
	}
}

// Close ends WireGuard, the TUN and the socket. Further calls do nothing.
func (t *Tunnel) Close() {
	_ = t.bind.quic.Close()
	t.device.Close()
	t.tun.wait()
}

// PacketConn is the QUIC half of the socket. Reads see what QUIC peers send, writes go to UDP addresses.
func (t *Tunnel) PacketConn() net.PacketConn { return t.bind.quic }

// Port is the UDP port in use.
func (t *Tunnel) Port() uint16 { return uint16(t.bind.quic.port.Load()) }

// Apply makes the peers exactly those of cfg. An equal state writes nothing; after an error the next
// Apply starts from what the device has. What is wrong in cfg is left out, and the error says what: it keeps no other
// peer from being added, and none from being removed.
func (t *Tunnel) Apply(_ context.Context, cfg overlay.TunnelConfig) error {
	wanted, refused := sound(cfg.Peers, t.own)
	t.mu.Lock()
	defer t.mu.Unlock()
	current, err := t.state()
	if err != nil {
		return fmt.Errorf("apply tunnel: %w", err)
	}
	peers := make(map[string][32]byte, len(wanted))
	for i := range wanted {
		t.paths.setCandidates(wanted[i].Host, wanted[i].Endpoints)
		peers[wanted[i].Host] = wanted[i].PublicKey
	}
	if text := diff(current, wanted); text != "" {
		if err := t.device.IpcSet(text); err != nil {
			return fmt.Errorf("apply tunnel: %w", err)
		}
	}
	t.peers = peers
	if t.greet == nil {
		t.greet = maps.Clone(peers)
		for host := range peers {
			if h := t.paths.lookup(host); h != nil && h.paths.Load().verified != nil {
				t.greetOnce(host)
			}
		}
	}
	maps.DeleteFunc(t.greet, func(host string, key [32]byte) bool { return peers[host] != key })
	if refused != nil {
		return fmt.Errorf("apply tunnel: %w", refused)
	}
	return nil
}

// greetOnce opens a handshake with a peer that this device had from the start, once it is known where it is: after a
// restart here it still sends with keys that are gone, and would notice by its own timeout only, after 15 seconds. A
// peer that comes later has no old keys, and two that open a handshake at the same moment wait five seconds for each
// other. The caller holds mu.
func (t *Tunnel) greetOnce(host string) {
	key, ok := t.greet[host]
	if !ok {
		return
	}
	delete(t.greet, host)
	if peer := t.device.LookupPeer(device.NoisePublicKey(key)); peer != nil {
		if err := peer.SendHandshakeInitiation(false); err != nil {
			t.logger.Debug("handshake not opened", "host", host, "error", err)
		}
	}
}

// Peers reports every peer, sorted by host.
func (t *Tunnel) Peers(context.Context) ([]overlay.PeerStatus, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	current, err := t.state()
	if err != nil {
		return nil, fmt.Errorf("read tunnel: %w", err)
	}
	status := make([]overlay.PeerStatus, 0, len(t.peers))
	for host, key := range t.peers {
		if p := current[key]; p != nil {
			status = append(status, overlay.PeerStatus{
				Host: host, Path: t.pathText(p.endpoint), LastHandshake: p.handshake, RxBytes: p.rx, TxBytes: p.tx,
			})
		}
	}
	slices.SortFunc(status, func(a, b overlay.PeerStatus) int { return strings.Compare(a.Host, b.Host) })
	return status, nil
}

func (t *Tunnel) pathText(endpoint string) string {
	if name, ok := strings.CutPrefix(endpoint, hostPrefix); ok {
		h := t.paths.lookup(name)
		if h == nil || h.paths.Load().verified == nil {
			return ""
		}
		endpoint = h.paths.Load().verified.DstToString()
	}
	if endpoint == "" {
		return ""
	}
	return "direct " + endpoint
}

// SetPath tells that QUIC has verified that host is at addr. WireGuard uses it from now on, until an
// authenticated WireGuard packet of that host comes from elsewhere.
func (t *Tunnel) SetPath(host string, addr netip.AddrPort) {
	t.paths.verify(host, addr)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reset(host)
	t.greetOnce(host)
}

// reset drops what WireGuard has learned about where a host is. The caller holds mu.
func (t *Tunnel) reset(host string) {
	key, ok := t.peers[host]
	if !ok {
		return
	}
	if err := t.device.IpcSet(endpointReset(key, host)); err != nil {
		t.logger.Warn("path not set", "host", host, "error", err)
	}
}

func (t *Tunnel) state() (map[[32]byte]*peerState, error) {
	text, err := t.device.IpcGet()
	if err != nil {
		return nil, fmt.Errorf("get device state: %w", err)
	}
	return parseState(text)
}

// Stats are counters since New, by name.
func (t *Tunnel) Stats() map[string]uint64 {
	return map[string]uint64{
		"foreignPackets": t.bind.foreign.Load(),         // neither WireGuard nor QUIC
		"receiveErrors":  t.bind.receiveErrors.Load(),   // of the socket
		"quicOverflow":   t.bind.quic.overflow.Load(),   // dropped, because QUIC did not read fast enough
		"quicOversize":   t.bind.quic.oversize.Load(),   // dropped, larger than any QUIC packet of ours
		"quicSendErrors": t.bind.quic.sendErrors.Load(), // lost, because the system did not take them
	}
}

// deviceLogger passes on what wireguard-go says, a few lines a second at most: it logs each batch
// that it cannot send.
func deviceLogger(logger *slog.Logger) *device.Logger {
	limit := rate.NewLimiter(2, 10)
	l := &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf: func(format string, args ...any) {
			if limit.Allow() {
				logger.Warn("wireguard: " + fmt.Sprintf(format, args...))
			}
		},
	}
	if logger.Enabled(context.Background(), slog.LevelDebug) {
		l.Verbosef = func(format string, args ...any) { logger.Debug("wireguard: " + fmt.Sprintf(format, args...)) }
	}
	return l
}
