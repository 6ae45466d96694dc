package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/bulkhead-mesh/bulkhead/overlay"
)

// sound is what of the wanted peers WireGuard may be given; the error says what is left out. Of a name, key or
// address that two peers want, WireGuard would silently take the last: so neither gets it.
func sound(want []overlay.TunnelPeer, own [32]byte) ([]overlay.TunnelPeer, error) {
	names := make(map[string]int, len(want))
	keys := make(map[[32]byte]int, len(want))
	for i := range want {
		names[want[i].Host]++
		keys[want[i].PublicKey]++
	}
	var faults []error
	kept := make([]overlay.TunnelPeer, 0, len(want))
	for i := range want {
		p := want[i]
		err := faultOf(&p, own)
		switch {
		case err != nil:
		case names[p.Host] > 1:
			err = fmt.Errorf("host %s is given twice", p.Host)
		case keys[p.PublicKey] > 1:
			err = fmt.Errorf("host %s has the WireGuard key of another host", p.Host)
		}
		if err != nil {
			faults = append(faults, err)
			continue
		}
		kept = append(kept, p)
	}
	return kept, errors.Join(append(faults, disown(kept)...)...)
}

// faultOf says what is wrong with a peer by itself.
func faultOf(p *overlay.TunnelPeer, own [32]byte) error {
	if p.Host == "" || strings.ContainsAny(p.Host, "=\r\n") {
		return fmt.Errorf("host name %q is not valid", p.Host)
	}
	if p.PublicKey == own {
		return fmt.Errorf("host %s has the WireGuard key of this host", p.Host)
	}
	for _, a := range p.AllowedIPs {
		if !a.IsValid() || a.Zone() != "" {
			return fmt.Errorf("host %s: allowed address %v is not valid", p.Host, a)
		}
	}
	return nil
}

// disown takes every address that two of the peers want from all of them, and says which.
func disown(peers []overlay.TunnelPeer) []error {
	owners := make(map[netip.Addr]string, len(peers))
	shared := make(map[netip.Addr]bool)
	var faults []error
	for i := range peers {
		for _, a := range peers[i].AllowedIPs {
			other, taken := owners[a.Unmap()]
			if taken && other != peers[i].Host {
				shared[a.Unmap()] = true
				faults = append(faults, fmt.Errorf("hosts %s and %s both have address %s", other, peers[i].Host, a))
			}
			owners[a.Unmap()] = peers[i].Host
		}
	}
	if len(shared) == 0 {
		return nil
	}
	for i := range peers {
		// A copy: the list is the caller's.
		peers[i].AllowedIPs = slices.DeleteFunc(slices.Clone(peers[i].AllowedIPs), func(a netip.Addr) bool { return shared[a.Unmap()] })
	}
	return faults
}
