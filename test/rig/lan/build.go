package lan

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// The switches, bridges in a namespace of their own.
const (
	greenBridge   = "green"
	redBridge     = "red"
	outsideBridge = "outside"
)

// gatewayOnGreen is the host part of the gateway's address on the green network: the lowest ones are the nodes'.
const gatewayOnGreen = 254

// routerSettings make a machine forward, with strict reverse-path filtering on every interface (ip-sysctl of the
// kernel), the hardest case for a data path with two NICs.
var routerSettings = [][2]string{
	{"net/ipv4/ip_forward", "1"},
	{"net/ipv4/conf/all/rp_filter", "1"},
	{"net/ipv4/conf/default/rp_filter", "1"},
	{"net/ipv6/conf/all/forwarding", "1"},
}

// hostSettings make IPv6 addresses usable at once, without the second of duplicate address detection (RFC 4862).
var hostSettings = [][2]string{
	{"net/ipv6/conf/all/accept_dad", "0"},
	{"net/ipv6/conf/default/accept_dad", "0"},
	{"net/ipv6/conf/all/disable_ipv6", "0"},
	{"net/ipv6/conf/default/disable_ipv6", "0"},
}

func (l *LAN) build() error {
	if err := l.buildSwitch(); err != nil {
		return fmt.Errorf("switch: %w", err)
	}
	for _, n := range l.Nodes {
		if err := l.buildNode(n); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	if err := l.buildGateway(); err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	if err := l.buildHost(l.ProviderHost, redBridge, Provider, Provider6); err != nil {
		return fmt.Errorf("provider host: %w", err)
	}
	if err := l.buildHost(l.OutsideHost, outsideBridge, Outside, Outside6); err != nil {
		return fmt.Errorf("outside host: %w", err)
	}
	return nil
}

func (l *LAN) buildSwitch() error {
	if _, err := addNamespace(l.Prefix + "-switch"); err != nil {
		return err
	}
	return withHandle(l.namespace("switch"), func(h *netlink.Handle, _ int) error {
		for _, name := range []string{greenBridge, redBridge, outsideBridge} {
			// Snooping off: a plain switch that floods multicast, so that neighbour discovery never waits for a querier.
			snooping := false
			bridge := &netlink.Bridge{LinkAttrs: named(name), MulticastSnooping: &snooping}
			if err := h.LinkAdd(bridge); err != nil {
				return fmt.Errorf("add bridge %s: %w", name, err)
			}
			if err := h.LinkSetUp(bridge); err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *LAN) buildNode(n Node) error {
	if err := l.addMachine(n.Host, slices.Concat(hostSettings, routerSettings),
		port{greenBridge, n.Namespace, GreenInterface, []netip.Prefix{in(n.Address, Green), in(n.Address6, Green6)}},
		port{redBridge, n.Namespace, ProviderInterface, []netip.Prefix{in(n.Provider, Provider), in(n.Provider6, Provider6)}},
	); err != nil {
		return err
	}
	err := withHandle(n.Namespace, func(h *netlink.Handle, _ int) error {
		for _, peer := range l.Nodes {
			if peer.Name == n.Name {
				continue
			}
			if err := addRoutes(h, via{peer.PodNetwork, peer.Address}, via{peer.PodNetwork6, peer.Address6}); err != nil {
				return err
			}
		}
		return addRoutes(h, via{allOf(Green), at(Green, gatewayOnGreen)}, via{allOf(Green6), at(Green6, gatewayOnGreen)})
	})
	if err != nil {
		return err
	}
	_, err = run(Command(context.Background(), n.Namespace, "nft", "-f", "-"), serviceRules(n))
	return err
}

func (l *LAN) buildGateway() error {
	leg := func(bridge, name string, host int, networks ...netip.Prefix) port {
		p := port{bridge: bridge, host: l.Gateway.Namespace, name: name}
		for _, network := range networks {
			p.addresses = append(p.addresses, in(at(network, host), network))
		}
		return p
	}
	return l.addMachine(l.Gateway, slices.Concat(hostSettings, routerSettings),
		leg(greenBridge, "green", gatewayOnGreen, Green, Green6),
		leg(redBridge, "red", 1, Provider, Provider6),
		leg(outsideBridge, "outside", 1, Outside, Outside6),
	)
}

// buildHost makes a machine with one NIC, whose default route is the first address of its network.
func (l *LAN) buildHost(host Host, bridge string, network, network6 netip.Prefix) error {
	nic := port{bridge, host.Namespace, "eth0", []netip.Prefix{in(host.Address, network), in(host.Address6, network6)}}
	if err := l.addMachine(host, hostSettings, nic); err != nil {
		return err
	}
	return withHandle(host.Namespace, func(h *netlink.Handle, _ int) error {
		return addRoutes(h, via{allOf(network), at(network, 1)}, via{allOf(network6), at(network6, 1)})
	})
}

// addMachine makes a namespace with settings and plugs it into switches.
func (l *LAN) addMachine(host Host, settings [][2]string, ports ...port) error {
	name := filepath.Base(host.Namespace)
	if _, err := addNamespace(name); err != nil {
		return err
	}
	if err := sysctls(host.Namespace, settings); err != nil {
		return err
	}
	for _, p := range ports {
		if err := l.plug(p); err != nil {
			return fmt.Errorf("plug %s of %s into %s: %w", p.name, name, p.bridge, err)
		}
	}
	return nil
}

// plug connects a machine to a switch by a veth pair and configures the machine's end.
func (l *LAN) plug(p port) error {
	err := withHandle(p.host, func(_ *netlink.Handle, hostFd int) error {
		return withHandle(l.namespace("switch"), func(h *netlink.Handle, _ int) error {
			bridge, err := h.LinkByName(p.bridge)
			if err != nil {
				return err
			}
			attrs := named(fmt.Sprintf("port%d", linkCount(h)))
			attrs.MasterIndex, attrs.Flags = bridge.Attrs().Index, net.FlagUp
			return h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: p.name, PeerNamespace: netlink.NsFd(hostFd)})
		})
	})
	if err != nil {
		return err
	}
	return withHandle(p.host, func(h *netlink.Handle, _ int) error { return setUp(h, p.name, p.addresses...) })
}

// linkCount is a number that no port of the switch has yet: ports are only ever added.
func linkCount(h *netlink.Handle) int {
	links, _ := h.LinkList()
	return len(links)
}

// setUp gives a link its addresses and brings it up.
func setUp(h *netlink.Handle, name string, addresses ...netip.Prefix) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(a)}); err != nil {
			return fmt.Errorf("add address %s to %s: %w", a, name, err)
		}
	}
	return h.LinkSetUp(link)
}

// via is a route by a gateway.
type via struct {
	to      netip.Prefix
	gateway netip.Addr
}

func addRoutes(h *netlink.Handle, routes ...via) error {
	for _, r := range routes {
		if err := h.RouteAdd(&netlink.Route{Dst: ipNet(r.to), Gw: r.gateway.AsSlice()}); err != nil {
			return fmt.Errorf("add route to %s by %s: %w", r.to, r.gateway, err)
		}
	}
	return nil
}

// withHandle calls f with a netlink handle and a file descriptor of the network namespace at path.
func withHandle(path string, f func(h *netlink.Handle, fd int) error) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("netlink in %s: %w", path, err)
	}
	defer h.Close()
	return f(h, int(ns))
}

func named(name string) netlink.LinkAttrs {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	return attrs
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// allOf returns the default route's destination in the family of p.
func allOf(p netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(at(p, 0), 0).Masked()
}
