package fastpath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// halfOpen matches TCP connections of the addresses of which connection tracking has seen no more than the first packets.
type halfOpen map[netip.Addr]struct{}

// States of enum tcp_conntrack (include/uapi/linux/netfilter/nf_conntrack_tcp.h).
const (
	stateSynSent = 1
	stateSynRecv = 2
)

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (h halfOpen) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	tcp, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP)
	if !ok || tcp.State != stateSynSent && tcp.State != stateSynRecv {
		return false
	}
	for _, ip := range []net.IP{f.Forward.SrcIP, f.Forward.DstIP} {
		a, _ := netip.AddrFromSlice(ip)
		if _, ok := h[a.Unmap()]; ok {
			return true
		}
	}
	return false
}

// forgetHalfOpen makes connection tracking forget what it knows of flows of the addresses: when these take the ordinary way
// again, it would hold their packets against a connection that has just begun, and call them invalid.
func forgetHalfOpen(h *netlink.Handle, addresses []netip.Addr) error {
	byFamily := map[netlink.InetFamily]halfOpen{}
	for _, a := range addresses {
		f := netlink.InetFamily(familyOf(a).nfproto) // NFPROTO and AF are the same for both
		if byFamily[f] == nil {
			byFamily[f] = halfOpen{}
		}
		byFamily[f][a] = struct{}{}
	}
	var errs []error
	for family, filter := range byFamily {
		_, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter)
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EPROTONOSUPPORT) && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("forget half-open connections of %v: %w", addresses, err))
		}
	}
	return errors.Join(errs...)
}
