package leg

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat"
)

// Pod is what the network namespace of a pod shall hold besides the rules of the sidecar.
type Pod struct {
	// UID of the pod.
	UID string
	// Addresses are the floating addresses, at most one per family.
	Addresses []netip.Addr
	// MTU of the leg, 0 for the kernel's default.
	MTU int
	// NoLeg: packets come by the CNI's link, so that there is none of ours.
	NoLeg bool
}

// podState is the comparable form of Pod.
type podState struct {
	link      podLink
	addresses map[netip.Prefix]struct{} // IPv4 addresses of nat.LegInterface
	state                               // of which rules, routes, neighbours and sysctls are used
}

type podLink struct {
	Up  bool
	MTU int
}

// desiredPod says what the pod's namespace shall hold.
//
// The blackhole is for the moment in which no DNAT stands: silence. Without it a packet for the address goes back to
// the node and comes again until its TTL is used up; with the address as a local one, clients would get a reset. It is
// not in the main table: KubeVirt reads that table before it sets up the pod's network and asks for the link of each
// route (pkg/network/driver/nmstate/status.go, readRoutes). A blackhole has none, the set-up fails with "invalid
// argument", and a leg that was plugged before then would keep the VM from starting.
func desiredPod(p Pod) podState {
	s := podState{
		state: state{
			rules: map[rule]struct{}{}, routes: map[routeKey]route{}, neighbours: map[neighbour]mac{},
			sysctls: map[string]string{},
		},
		addresses: map[netip.Prefix]struct{}{},
	}
	if !p.NoLeg {
		s.link, s.addresses[podEnd4] = podLink{Up: true, MTU: p.MTU}, struct{}{}
	}
	for _, a := range p.Addresses {
		own := netip.PrefixFrom(a, a.BitLen())
		s.rules[rule{Priority: podOwnRule, V6: a.Is6(), To: own, Table: podTable}] = struct{}{}
		s.routes[routeKey{podTable, own}] = route{Kind: unix.RTN_BLACKHOLE}
		s.addPodSysctls(a.Is6(), p.NoLeg)
		if p.NoLeg {
			continue
		}
		v6, gateway := a.Is6(), nodeEnd4
		if v6 {
			gateway = nodeEnd6
		}
		s.rules[rule{Priority: podRule, V6: v6, Mark: nat.LegMark, Table: podTable}] = struct{}{}
		everything := netip.PrefixFrom(anyAddress(v6), 0)
		s.routes[routeKey{podTable, everything}] = route{Kind: unix.RTN_UNICAST, Dev: nat.LegInterface, Via: gateway}
		s.neighbours[neighbour{nat.LegInterface, gateway}] = nodeMAC
	}
	return s
}

// addPodSysctls:
//
//   - bridge-nf-call-*: with it, frames that the guest sends to itself through its floating address (hairpin) pass the
//     IP hooks twice and are dropped; it also costs time on every packet.
//   - tcp_loose: a connection that arrives by live migration is picked up in the middle. With 0 it breaks.
//   - tcp_be_liberal: the first answers to a guest on its new node come here as long as the LAN has not heard of that, and
//     acknowledge what this kernel has not seen. They would be invalid, and reach nobody (tcp_in_window in
//     net/netfilter/nf_conntrack_proto_tcp.c). Both ends judge what is in their windows themselves.
//   - rp_filter 0: packets arrive by the leg from addresses whose route is eth0. With accept_local the kernel does not
//     look for a route to the source at all (fib_validate_source in net/ipv4/fib_frontend.c), which took two looks for
//     each packet; who pretends to be the guest or its gateway is refused by the sidecar's rules with his first packet.
//     "all" would hold for the leg too, so the other links take its value over.
//   - accept_ra, IPv6 addresses of its own: the leg has no router and no use for them.
func (s *podState) addPodSysctls(v6, noLeg bool) {
	s.sysctls["netfilter/nf_conntrack_tcp_loose"] = "1"
	s.sysctls["netfilter/nf_conntrack_tcp_be_liberal"] = "1"
	if v6 {
		s.sysctls["bridge/bridge-nf-call-ip6tables"] = "0"
	} else {
		s.sysctls["bridge/bridge-nf-call-iptables"] = "0"
	}
	switch {
	case noLeg:
	case v6:
		s.sysctls["ipv6/conf/"+nat.LegInterface+"/accept_ra"] = "0"
	default:
		s.sysctls[rpFilterOfAll] = "0"
		s.sysctls["ipv4/conf/"+nat.LegInterface+"/rp_filter"] = "0"
		s.sysctls["ipv4/conf/"+nat.LegInterface+"/accept_local"] = "1"
	}
}

// ApplyPod makes the namespace of the pod hold what p says, and reports the changes. The leg must be plugged, or the
// error is ErrNotPlugged. Addresses that p has no more are withdrawn: their blackhole and their tracked connections go.
func ApplyPod(ns *os.File, sysctlDir string, p Pod) (Report, error) {
	var r Report
	h, err := handleAt(ns)
	if err != nil {
		return r, fmt.Errorf("netlink socket of pod %s: %w", p.UID, err)
	}
	defer h.Close()
	settings := sysctls{dir: sysctlDir, ns: ns}
	want := desiredPod(p)
	have, link, err := readPod(h, settings, sortedKeys(want.sysctls))
	if err != nil {
		return r, err
	}
	switch {
	case p.NoLeg:
	case link == nil:
		return r, ErrNotPlugged
	case want.link.MTU == 0:
		want.link.MTU = link.Attrs().MTU
	}
	// A setting that the kernel does not have needs no value: br_netfilter or connection tracking are not loaded.
	for path := range want.sysctls {
		if _, known := have.sysctls[path]; !known {
			delete(want.sysctls, path)
		}
	}
	a := podApplication{h: h, settings: settings, link: link, want: want, have: have, report: &r}
	return r, errors.Join(a.add(), a.remove())
}

// ClearPod removes what ApplyPod has put into the namespace, after the leg was unplugged: the addresses' blackholes,
// the rules, and what connection tracking knows about the addresses.
func ClearPod(ns *os.File) (Report, error) {
	var r Report
	h, err := handleAt(ns)
	if err != nil {
		return r, fmt.Errorf("netlink socket of a pod: %w", err)
	}
	defer h.Close()
	have := podState{state: state{rules: map[rule]struct{}{}, routes: map[routeKey]route{}}}
	if err := readPodTables(h, &have.state, nil); err != nil {
		return r, err
	}
	a := podApplication{h: h, have: have, report: &r}
	return r, a.remove()
}

// readPod returns what the namespace holds, and the pod's end of the leg, nil if there is none.
func readPod(h *netlink.Handle, settings sysctls, paths []string) (s podState, link netlink.Link, err error) {
	s = podState{
		state: state{
			rules: map[rule]struct{}{}, routes: map[routeKey]route{}, neighbours: map[neighbour]mac{},
		},
		addresses: map[netip.Prefix]struct{}{},
	}
	if link, err = linkByName(h, nat.LegInterface); err != nil {
		return s, nil, err
	}
	names := map[int]string{}
	if link != nil {
		s.link = podLink{Up: link.Attrs().Flags&net.FlagUp != 0, MTU: link.Attrs().MTU}
		names[link.Attrs().Index] = nat.LegInterface
		if err := readLeg(h, link, &s); err != nil {
			return s, nil, err
		}
	}
	if err := readPodTables(h, &s.state, names); err != nil {
		return s, nil, err
	}
	s.sysctls, err = settings.read(paths)
	return s, link, err
}

// readLeg reads what hangs on the pod's end of the leg.
func readLeg(h *netlink.Handle, link netlink.Link, s *podState) error {
	addresses, err := again(func() ([]netlink.Addr, error) { return h.AddrList(link, unix.AF_INET) })
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", nat.LegInterface, err)
	}
	for _, a := range addresses {
		s.addresses[prefixOf(a.IPNet)] = struct{}{}
	}
	index := link.Attrs().Index
	for _, family := range families {
		list, err := again(func() ([]netlink.Neigh, error) { return h.NeighList(index, family) })
		if err != nil {
			return fmt.Errorf("list neighbours of %s: %w", nat.LegInterface, err)
		}
		for _, e := range list {
			if a, ok := netip.AddrFromSlice(e.IP); ok && e.State == netlink.NUD_PERMANENT && len(e.HardwareAddr) == 6 {
				s.neighbours[neighbour{nat.LegInterface, a.Unmap()}] = mac(e.HardwareAddr)
			}
		}
	}
	return nil
}

func readPodTables(h *netlink.Handle, s *state, names map[int]string) error {
	if err := readRules(h, s, func(r netlink.Rule) bool { return r.Table == podTable }); err != nil {
		return err
	}
	return readRoutes(h, s, names, func(r netlink.Route) bool { return r.Table == podTable || r.Protocol == protocol })
}

// podApplication is one ApplyPod on its way.
type podApplication struct {
	h          *netlink.Handle
	settings   sysctls
	link       netlink.Link
	want, have podState
	report     *Report
}

func (a podApplication) add() error {
	var errs []error
	for _, path := range diff(a.want.sysctls, a.have.sysctls).Put {
		write := a.settings.write
		if path == rpFilterOfAll {
			write = a.settings.handDown
		}
		if err := write(path, a.want.sysctls[path]); err != nil {
			errs = append(errs, fmt.Errorf("set %s in the pod: %w", path, err))
			continue
		}
		a.report.changed("pod sysctl %s=%s", path, a.want.sysctls[path])
	}
	if err := a.setLink(); err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, n := range diff(a.want.neighbours, a.have.neighbours).Put {
		errs = append(errs, a.setNeighbour(n))
	}
	for _, k := range diff(a.want.routes, a.have.routes).Put {
		errs = append(errs, addRoute(a.h, k, a.want.routes[k], a.report))
	}
	for _, r := range diff(a.want.rules, a.have.rules).Put {
		errs = append(errs, addRule(a.h, r, a.report))
	}
	return errors.Join(errs...)
}

func (a podApplication) setLink() error {
	for _, prefix := range diff(a.want.addresses, a.have.addresses).Put {
		err := a.h.AddrReplace(a.link, &netlink.Addr{IPNet: ipNet(prefix), Scope: int(netlink.SCOPE_LINK)})
		if err != nil {
			return fmt.Errorf("address %s on %s: %w", prefix, nat.LegInterface, err)
		}
		a.report.changed("pod address %s", prefix)
	}
	if a.want.link == a.have.link || a.want.link == (podLink{}) {
		return nil
	}
	if err := errors.Join(a.h.LinkSetMTU(a.link, a.want.link.MTU), a.h.LinkSetUp(a.link)); err != nil {
		return fmt.Errorf("set %s up: %w", nat.LegInterface, err)
	}
	a.report.changed("pod link %s", nat.LegInterface)
	a.report.Raised = true
	return nil
}

func (a podApplication) setNeighbour(n neighbour) error {
	ether := a.want.neighbours[n]
	err := a.h.NeighSet(&netlink.Neigh{
		LinkIndex: a.link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: n.Address.AsSlice(), HardwareAddr: ether[:],
	})
	if err != nil {
		return fmt.Errorf("neighbour %s on %s: %w", n.Address, nat.LegInterface, err)
	}
	a.report.changed("pod neighbour %s", n.Address)
	return nil
}

func (a podApplication) remove() error {
	var errs []error
	gone := application{report: a.report}
	for _, r := range diff(a.want.rules, a.have.rules).Remove {
		errs = append(errs, gone.removed(a.h.RuleDel(r.netlink()), "pod %s", r))
	}
	for _, k := range diff(a.want.routes, a.have.routes).Remove {
		errs = append(errs, gone.removed(delRoute(a.h, k, a.have.routes[k]), "pod route %s", k.To))
		if a.have.routes[k].Kind == unix.RTN_BLACKHOLE {
			a.report.Withdrawn = append(a.report.Withdrawn, k.To.Addr())
		}
	}
	return errors.Join(append(errs, forget(a.h, a.report.Withdrawn))...)
}
