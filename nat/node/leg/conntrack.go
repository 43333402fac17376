package leg

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ofAddresses matches flows that have one of the addresses at either end, in either direction.
type ofAddresses map[netip.Addr]struct{}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s ofAddresses) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	for _, ip := range []net.IP{f.Forward.SrcIP, f.Forward.DstIP, f.Reverse.SrcIP, f.Reverse.DstIP} {
		a, _ := netip.AddrFromSlice(ip)
		if _, ok := s[a.Unmap()]; ok {
			return true
		}
	}
	return false
}

// forget deletes what connection tracking knows about the addresses, in one walk per family. Without it the flows of a
// withdrawn address stay translated and allowed for as long as they live.
func forget(h *netlink.Handle, addresses []netip.Addr) error {
	byFamily := map[int]ofAddresses{}
	for _, a := range addresses {
		f := familyOf(a)
		if byFamily[f] == nil {
			byFamily[f] = ofAddresses{}
		}
		byFamily[f][a] = struct{}{}
	}
	var errs []error
	for family, filter := range byFamily {
		_, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(family), filter)
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EPROTONOSUPPORT) &&
			!errors.Is(err, unix.EINVAL) { // connection tracking is not loaded: nothing to forget
			errs = append(errs, fmt.Errorf("forget flows of %v: %w", addresses, err))
		}
	}
	return errors.Join(errs...)
}
