package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/bulkhead-mesh/bulkhead/deploy/lab"
	"github.com/bulkhead-mesh/bulkhead/overlay/tunnel"
)

const (
	bareInterface = "bare0"
	barePort      = 51820
	barePackage   = "./deploy/lab/bench/barewg"
)

// buildBare builds the baseline as the Makefile builds bulkhead, but with symbols, for profilers.
func buildBare(ctx context.Context, dir string) (string, error) {
	program := filepath.Join(dir, "barewg")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", program, barePackage)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", barePackage, err, bytes.TrimSpace(out))
	}
	return program, nil
}

// bareHost is one end of the baseline.
type bareHost struct {
	host            *lab.Host
	underlay, inner netip.Addr
	private, public [32]byte
	process         *lab.Process
}

// newBare starts wireguard-go alone on two more hosts on the mesh's switch: their links are the same, but there is no
// firewall at all. With shared it runs on the two hosts that are measured, where its packets, too, meet Bulkhead's
// rules for all that is not of the mesh, and connection tracking.
func newBare(ctx context.Context, c *crowd, mtu int, shared bool) (*plane, error) {
	program, err := buildBare(ctx, c.mesh.Dir)
	if err != nil {
		return nil, err
	}
	hosts := [2]*lab.Host{c.left.Host, c.right.Host}
	if !shared {
		for i := range hosts {
			if hosts[i], err = addBareHost(c.mesh, i); err != nil {
				return nil, err
			}
		}
	}
	var ends [2]*bareHost
	for i := range ends {
		if ends[i], err = newBareHost(hosts[i], i); err != nil {
			return nil, err
		}
	}
	for i, e := range ends {
		if err := e.start(ctx, program, c.mesh.Dir, mtu, ends[1-i]); err != nil {
			return nil, err
		}
	}
	return newPlane("bare", ends[0].host, ends[1].host, ends[1].inner, ends[0].process, ends[1].process)
}

func addBareHost(m *lab.Mesh, i int) (*lab.Host, error) {
	host, err := m.World.AddHost(fmt.Sprintf("bare%d", i+1))
	if err != nil {
		return nil, err
	}
	_, err = m.Switch.Connect(host, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 77, byte(201 + i)}), 24))
	return host, err
}

func newBareHost(host *lab.Host, i int) (e *bareHost, err error) {
	e = &bareHost{host: host, underlay: host.Addresses()[0], inner: netip.AddrFrom4([4]byte{10, 99, 0, byte(1 + i)})}
	if e.private, err = tunnel.GenerateKey(); err != nil {
		return nil, err
	}
	e.public, err = tunnel.PublicKey(e.private)
	return e, err
}

// start starts wireguard-go with the other end as its only peer.
func (e *bareHost) start(ctx context.Context, program, dir string, mtu int, peer *bareHost) (err error) {
	path := filepath.Join(dir, "bare-"+e.host.Name+".conf")
	text := fmt.Sprintf("private_key=%s\nlisten_port=%d\npublic_key=%s\nallowed_ip=%s/32\nendpoint=%s\n",
		hex.EncodeToString(e.private[:]), barePort, hex.EncodeToString(peer.public[:]), peer.inner, netip.AddrPortFrom(peer.underlay, barePort))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	e.process, err = e.host.Start("barewg", program, "-interface", bareInterface, "-mtu", strconv.Itoa(mtu), "-configuration", path)
	if err != nil {
		return err
	}
	if err := e.configure(ctx); err != nil {
		return fmt.Errorf("%w; its log ends with: %s", err, e.process.Log())
	}
	return nil
}

// configure waits for the interface, then gives it its address.
func (e *bareHost) configure(ctx context.Context) error {
	return lab.Eventually(ctx, patience, func() error {
		for _, args := range [][]string{
			{"addr", "replace", netip.PrefixFrom(e.inner, 24).String(), "dev", bareInterface},
			{"link", "set", bareInterface, "up"},
		} {
			out, err := e.host.Run(ctx, "ip", args...)
			if err == nil {
				err = out.Err()
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}
