// Package nodetest builds the world of a node agent from network namespaces, for tests: a node with a green NIC to the
// cluster and a red one to the provider LAN, hosts on that LAN and beyond its router, pods with guests.
//
//	guest 10.0.2.2 ── k6t-eth0 [pod] eth0 ── cali* [node] red0 192.168.100.10 ── br [lan] ── eth0 .1 .200 [host] lo 203.0.113.9
//	                                               └ green0 201.0.0.1 ── eth0 201.0.0.254 [cluster]
//
// Namespaces have no names, so nothing can be left behind: they end with the last descriptor.
package nodetest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	vishnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/netns"
)

// Namespace is a network namespace of a test.
type Namespace struct {
	File *os.File
	Link *netlink.Handle
	t    testing.TB
}

// NeedRoot skips the test where namespaces cannot be made, or fails it when FLOATIP_TEST_ROOT=1 says that they must.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("FLOATIP_TEST_ROOT") == "1" {
		t.Fatal("network namespaces need root, and FLOATIP_TEST_ROOT=1 demands this test")
	}
	t.Skip("network namespaces need root")
}

// NewNamespace makes a namespace whose loopback is up.
func NewNamespace(t testing.TB) *Namespace {
	t.Helper()
	NeedRoot(t)
	made := make(chan error, 1)
	ns := &Namespace{t: t}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- err
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		ns.File = f
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	h, err := netlink.NewHandleAt(vishnetns.NsHandle(int(ns.File.Fd())), unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatalf("netlink socket: %v", err)
	}
	ns.Link = h
	t.Cleanup(func() {
		h.Close()
		ns.File.Close()
	})
	// Addresses are usable at once, so that what a test measures is not duplicate address detection.
	ns.Sysctl("ipv6/conf/all/accept_dad=0", "ipv6/conf/default/accept_dad=0", "ipv6/conf/default/router_solicitations=0")
	ns.Up("lo")
	return ns
}

// HasIPv6 is false on a kernel that was started with ipv6.disable=1. What tests say in IPv6 to a Namespace is left out there.
func HasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6/conf")
	return err == nil
}

// missing reports whether the text names an IPv6 address, or a setting of IPv6, on a kernel without.
func missing(text string) bool {
	return (strings.Contains(text, "::") || strings.HasPrefix(text, "ipv6/")) && !HasIPv6()
}

// Do runs f inside the namespace.
func (n *Namespace) Do(f func() error) {
	n.t.Helper()
	if err := netns.Do(n.File, f); err != nil {
		n.t.Fatal(err)
	}
}

// Get returns the link with this name.
func (n *Namespace) Get(name string) netlink.Link {
	n.t.Helper()
	l, err := n.Link.LinkByName(name)
	if err != nil {
		n.t.Fatalf("link %s: %v", name, err)
	}
	return l
}

// Up sets links up.
func (n *Namespace) Up(names ...string) {
	n.t.Helper()
	for _, name := range names {
		if err := n.Link.LinkSetUp(n.Get(name)); err != nil {
			n.t.Fatalf("set %s up: %v", name, err)
		}
	}
}

// Down sets a link down.
func (n *Namespace) Down(name string) {
	n.t.Helper()
	if err := n.Link.LinkSetDown(n.Get(name)); err != nil {
		n.t.Fatalf("set %s down: %v", name, err)
	}
}

// Address adds addresses in CIDR notation to a link.
func (n *Namespace) Address(link string, cidrs ...string) {
	n.t.Helper()
	for _, cidr := range cidrs {
		if missing(cidr) {
			continue
		}
		a, err := netlink.ParseAddr(cidr)
		if err != nil {
			n.t.Fatal(err)
		}
		a.Flags = unix.IFA_F_NODAD
		if err := n.Link.AddrAdd(n.Get(link), a); err != nil {
			n.t.Fatalf("address %s on %s: %v", cidr, link, err)
		}
	}
}

// Remove takes an address from a link.
func (n *Namespace) Remove(link, cidr string) {
	n.t.Helper()
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.Link.AddrDel(n.Get(link), a); err != nil {
		n.t.Fatalf("remove address %s of %s: %v", cidr, link, err)
	}
}

// Release takes a link out of its bridge.
func (n *Namespace) Release(link string) {
	n.t.Helper()
	if err := n.Link.LinkSetNoMaster(n.Get(link)); err != nil {
		n.t.Fatalf("take %s out of its bridge: %v", link, err)
	}
}

// Route adds a route; "" for via means on-link.
func (n *Namespace) Route(to, via, dev string) {
	n.t.Helper()
	if missing(to) {
		return
	}
	dst := netip.MustParsePrefix(to)
	r := &netlink.Route{LinkIndex: n.Get(dev).Attrs().Index, Dst: &net.IPNet{
		IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(dst.Bits(), dst.Addr().BitLen()),
	}}
	if via != "" {
		r.Gw, r.Flags = netip.MustParseAddr(via).AsSlice(), int(netlink.FLAG_ONLINK)
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	if err := n.Link.RouteAdd(r); err != nil {
		n.t.Fatalf("route %s via %q dev %s: %v", to, via, dev, err)
	}
}

// Bridge makes a bridge that is up.
func (n *Namespace) Bridge(name string, ports ...string) {
	n.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := n.Link.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		n.t.Fatalf("bridge %s: %v", name, err)
	}
	n.patient(name)
	n.Up(name)
	n.Enslave(name, ports...)
}

// Enslave puts links into a bridge.
func (n *Namespace) Enslave(bridge string, ports ...string) {
	n.t.Helper()
	for _, p := range ports {
		if err := n.Link.LinkSetMaster(n.Get(p), n.Get(bridge)); err != nil {
			n.t.Fatalf("port %s: %v", p, err)
		}
		n.Up(p)
	}
}

// Cable connects two namespaces by a veth pair, both ends up.
func (n *Namespace) Cable(name string, peer *Namespace, peerName string) {
	n.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	err := n.Link.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: peerName, PeerNamespace: netlink.NsFd(int(peer.File.Fd())),
	})
	if err != nil {
		n.t.Fatalf("cable %s to %s: %v", name, peerName, err)
	}
	n.patient(name)
	peer.patient(peerName)
	n.Up(name)
	peer.Up(peerName)
}

// patient has the kernel ask sixty times, a second apart, for an address before it gives up: by itself it does so after three,
// and who should answer may have to wait for the processor.
func (n *Namespace) patient(link string) {
	n.t.Helper()
	for _, family := range []string{"ipv4", "ipv6"} {
		of := family + "/neigh/" + link
		n.Sysctl(of+"/mcast_solicit=60", of+"/ucast_solicit=60")
	}
}

// Sysctl sets "path=value" below /proc/sys/net.
func (n *Namespace) Sysctl(settings ...string) {
	n.t.Helper()
	n.Do(func() error {
		for _, s := range settings {
			if missing(s) {
				continue
			}
			path, value, _ := strings.Cut(s, "=")
			if err := os.WriteFile(filepath.Join("/proc/sys/net", path), []byte(value), 0); err != nil {
				return fmt.Errorf("sysctl %s: %w", s, err)
			}
		}
		return nil
	})
}

// ReadSysctl returns the value of a path below /proc/sys/net.
func (n *Namespace) ReadSysctl(path string) string {
	n.t.Helper()
	var raw []byte
	n.Do(func() (err error) {
		raw, err = os.ReadFile(filepath.Join("/proc/sys/net", path))
		return err
	})
	return strings.TrimSpace(string(raw))
}

// try is Do with its error returned.
func (n *Namespace) try(f func() error) error { return netns.Do(n.File, f) }
