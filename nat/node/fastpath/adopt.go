package fastpath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	vishnetlink "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/leg"
)

// Connection is a TCP connection by a floating address.
type Connection struct {
	// Outside is the end on the provider network or beyond, Floating the guest's.
	Outside, Floating netip.AddrPort
}

// tcpEstablished is TCP_CONNTRACK_ESTABLISHED (include/uapi/linux/netfilter/nf_conntrack_tcp.h).
const tcpEstablished = 3

// Adopt makes flows of connections that began on another node, so that no first packets of theirs were seen here. It believes
// the node's ordinary way, and nobody else: a connection becomes a flow if the node's connection tracking has picked it up,
// which it does with the first packet that got through all filters, has seen an answer to that, and translates nothing; and
// if the node's routes send its packets where the fast path would. It returns those that are none yet.
//
// Unlike the other calls it may run beside them: what it adds has no effect for an address that is not on the fast path.
func (n *Node) Adopt(c leg.Config, connections []Connection) (rest []Connection, err error) {
	k, err := n.open()
	if err != nil {
		return connections, err
	}
	defer k.close()
	tracked, err := conntrack.Dial(&netlink.Config{NetNS: n.fd()})
	if err != nil {
		return connections, fmt.Errorf("open conntrack: %w", err)
	}
	defer tracked.Close()
	links, err := k.links()
	if err != nil {
		return connections, err
	}
	list := ways(c, links)
	for some := range slices.Chunk(connections, elementsAtOnce) {
		var good []Connection
		var entries []conntrack.Flow
		for _, one := range some {
			entry, forwarded := forwards(tracked, one)
			if !forwarded || !k.leads(c, list, links, one) {
				rest = append(rest, one)
				continue
			}
			good, entries = append(good, one), append(entries, entry)
		}
		if err := k.remember(good); err != nil {
			return append(rest, good...), err
		}
		// Their packets are not seen any more. An entry that stays would take a new connection with old ports for an old one.
		for _, e := range entries {
			if err := tracked.Delete(e); err != nil && !errors.Is(err, unix.ENOENT) {
				return rest, fmt.Errorf("forget a connection that is a flow now: %w", err)
			}
		}
	}
	return rest, nil
}

// fd is the namespace as package netlink wants it, 0 for that of the process.
func (n *Node) fd() int {
	if n.ns == nil {
		return 0
	}
	return int(n.ns.Fd())
}

// forwards reports whether the node's connection tracking has let packets of the connection through, untranslated, and has
// seen those of the other direction. It returns the entry's name.
func forwards(tracked *conntrack.Conn, c Connection) (conntrack.Flow, bool) {
	inward := conntrack.Tuple{
		IP: conntrack.IPTuple{SourceAddress: c.Outside.Addr(), DestinationAddress: c.Floating.Addr()},
		Proto: conntrack.ProtoTuple{
			Protocol: unix.IPPROTO_TCP, SourcePort: c.Outside.Port(), DestinationPort: c.Floating.Port(),
		},
	}
	f, err := tracked.Get(conntrack.Flow{TupleOrig: inward})
	if err != nil {
		return conntrack.Flow{}, false // not picked up: nothing of it got through yet
	}
	established := f.ProtoInfo.TCP != nil && f.ProtoInfo.TCP.State == tcpEstablished
	name := conntrack.Flow{TupleOrig: f.TupleOrig, TupleReply: f.TupleReply}
	return name, established && f.Status.SeenReply() && !f.Status.SrcNAT() && !f.Status.DstNAT()
}

// leads reports whether the address has a way on the fast path, and whether the node's routes lead what its leg hands in to
// where that way does: to the same next host by the same NIC, and not into the cluster or to the node itself.
func (k *kernel) leads(c leg.Config, list reachedList, links surroundings, one Connection) bool {
	outside, floating := one.Outside.Addr(), one.Floating.Addr()
	i := slices.IndexFunc(list, func(r reached) bool { return r.address == floating && r.port != "" })
	if i < 0 || slices.ContainsFunc(c.ClusterNetworks, func(n netip.Prefix) bool { return n.Contains(outside) }) {
		return false
	}
	routes, err := k.routes.RouteGetWithOptions(outside.AsSlice(), &vishnetlink.RouteGetOptions{
		IifIndex: list[i].number, SrcAddr: floating.AsSlice(),
	})
	if err != nil || len(routes) != 1 || routes[0].Type != unix.RTN_UNICAST {
		return false
	}
	network, next := list[i].network, netip.Addr{}
	if !network.Prefix.Contains(outside) {
		next = network.Gateway
	}
	via, _ := netip.AddrFromSlice(routes[0].Gw)
	return routes[0].LinkIndex == links[network.Interface] && via.Unmap() == next
}

// remember adds flows. One that is there stays as it is.
func (k *kernel) remember(list []Connection) error {
	for _, f := range []family{ipv4, ipv6} {
		var elements []nftables.SetElement
		for _, c := range list {
			if familyOf(c.Floating.Addr()) == f {
				elements = append(elements, nftables.SetElement{Key: flowKey(c), Timeout: Life})
			}
		}
		if len(elements) == 0 {
			continue
		}
		if err := k.nft.SetAddElements(f.flowSets()[0], elements); err != nil {
			return fmt.Errorf("set %s: %w", f.flows("tcp"), err)
		}
		if err := k.nft.Flush(); err != nil {
			return fmt.Errorf("flows of table %s: %w", Table, err)
		}
	}
	return nil
}

// flowKey is the key of family.inbound: each field fills registers of 4 bytes.
func flowKey(c Connection) []byte {
	key := append(c.Outside.Addr().AsSlice(), c.Floating.Addr().AsSlice()...)
	for _, port := range []uint16{c.Outside.Port(), c.Floating.Port()} {
		key = append(binary.BigEndian.AppendUint16(key, port), 0, 0)
	}
	return key
}
