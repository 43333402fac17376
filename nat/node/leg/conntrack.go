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
	return forgetThose(h, addresses, func(of ofAddresses) netlink.CustomConntrackFilter { return of })
}

// States of enum tcp_conntrack (include/uapi/linux/netfilter/nf_conntrack_tcp.h).
const (
	stateSynSent = 1
	stateSynRecv = 2
)

// halfOpen matches TCP connections of the addresses of which connection tracking has seen no more than the first packets.
type halfOpen struct{ ofAddresses }

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (h halfOpen) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	tcp, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP)
	return ok && (tcp.State == stateSynSent || tcp.State == stateSynRecv) && h.ofAddresses.MatchConntrackFlow(f)
}

// ForgetHalfOpen deletes TCP connections of the addresses of which connection tracking knows only the beginning. It is for
// those that went past it and come back: it would call their packets invalid. h needs NETLINK_NETFILTER.
func ForgetHalfOpen(h *netlink.Handle, addresses []netip.Addr) error {
	return forgetThose(h, addresses, func(of ofAddresses) netlink.CustomConntrackFilter { return halfOpen{of} })
}

func forgetThose(h *netlink.Handle, addresses []netip.Addr, filter func(ofAddresses) netlink.CustomConntrackFilter) error {
	byFamily := map[int]ofAddresses{}
	for _, a := range addresses {
		f := familyOf(a)
		if byFamily[f] == nil {
			byFamily[f] = ofAddresses{}
		}
		byFamily[f][a] = struct{}{}
	}
	var errs []error
	for family, of := range byFamily {
		_, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(family), filter(of))
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EPROTONOSUPPORT) &&
			!errors.Is(err, unix.EINVAL) { // connection tracking is not loaded: nothing to forget
			errs = append(errs, fmt.Errorf("forget flows of %v: %w", addresses, err))
		}
	}
	return errors.Join(errs...)
}
