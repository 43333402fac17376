//go:build secondkernel

package node

import (
	"strings"

	"github.com/vishvananda/netlink"

	"floatip.io/floatip/nat/node/nodetest"
)

// kind is a kind of provider NIC.
type kind struct {
	name string
	tags string // those that the LAN must see
	// lay makes it the NIC of all nodes on a LAN, in place of red0.
	lay func(nodes ...*bench)
}

var (
	vlan = kind{"VLAN", "802.1Q 100", func(nodes ...*bench) {
		trunk(nodes...)
		for _, b := range nodes {
			b.bare()
			b.node.Run("ip link add link red0 name red0.100 type vlan id 100")
			b.onto("red0.100")
		}
	}}
	// vlanInVLAN is 802.1ad, which switches have between provider and customer: QinQ.
	vlanInVLAN = kind{"QinQ", "802.1ad 7 802.1Q 100", func(nodes ...*bench) {
		hostBehind(nodes[0].world, "type vlan id 100")
		trunkOf("802.1ad", "7", nodes...)
		for _, b := range nodes {
			b.bare()
			b.node.Run("ip link add link red0 name red0.7 type vlan proto 802.1ad id 7", "ip link set red0.7 up",
				"ip link add link red0.7 name red0.7.100 type vlan id 100")
			b.onto("red0.7.100")
		}
	}}
	// backup is a bond that sends by one of its ports.
	backup = kind{"BondActiveBackup", "", func(nodes ...*bench) {
		for _, b := range nodes {
			b.bare()
			b.bond("active-backup")
			b.onto("bond0")
		}
	}}
	// aggregate is a bond that sends by all of its ports.
	aggregate = kind{"Bond8023ad", "", func(nodes ...*bench) {
		for _, b := range nodes {
			b.bare()
			b.bond("802.3ad lacp_rate fast")
			b.onto("bond0")
		}
	}}
	bridgeOfVLANs = kind{"BridgeOfVLANs", "802.1Q 100", func(nodes ...*bench) {
		trunk(nodes...)
		for _, b := range nodes {
			b.bare()
			b.node.Bridge("br-ext")
			b.node.Run("ip link set br-ext type bridge vlan_filtering 1", "ip link set red0 master br-ext",
				"bridge vlan add dev red0 vid 100", "bridge vlan add dev br-ext vid 100 self",
				"ip link add link br-ext name br-ext.100 type vlan id 100")
			b.onto("br-ext.100")
		}
	}}
)

// trunk makes VLAN 100 of the bridge the LAN: tagged on the cables to the nodes, untagged to the host.
func trunk(nodes ...*bench) { trunkOf("802.1Q", "100", nodes...) }

func trunkOf(protocol, id string, nodes ...*bench) {
	lan := nodes[0].world.LAN
	lan.Run("ip link set dev br type bridge vlan_filtering 1 vlan_protocol "+protocol, "bridge vlan del dev host vid 1",
		"bridge vlan add dev host pvid untagged vid "+id)
	for _, b := range nodes {
		for _, cable := range b.cables() {
			lan.Run("bridge vlan del dev "+cable+" vid 1", "bridge vlan add dev "+cable+" vid "+id)
		}
	}
}

// cables are the LAN's ends of those to the node: that of red0, and that of red1 where there is one.
func (b *bench) cables() []string {
	first := "n" + b.number
	second := first + "b"
	if _, err := b.world.LAN.Link.LinkByName(second); err != nil {
		return []string{first}
	}
	return []string{first, second}
}

// cidrs are the node's addresses on the LAN.
func (b *bench) cidrs() []string {
	return []string{"192.168.100." + b.number + "/24", "2001:db8:100::" + b.number + "/64"}
}

// bare takes the node's addresses on the LAN from its NIC.
func (b *bench) bare() {
	for _, cidr := range b.cidrs() {
		b.node.Remove("red0", cidr)
	}
}

// onto makes another link the NIC to the LAN, with the node's addresses there.
func (b *bench) onto(link string) {
	b.nic = link
	b.node.Run("ip link set " + link + " up")
	b.node.Address(link, b.cidrs()...)
	b.node.Sysctl("ipv4/conf/"+link+"/rp_filter=1", "ipv4/neigh/"+link+"/mcast_solicit=60", "ipv6/neigh/"+link+"/mcast_solicit=60")
}

// bond puts red0 and a second cable to the LAN into a bond. Where its mode wants a partner, the LAN's ends are one too.
func (b *bench) bond(mode string) {
	lan, first, second, bond := b.world.LAN, "n"+b.number, "n"+b.number+"b", " type bond miimon 10 mode "+mode
	lan.Cable(second, b.node.Namespace, "red1")
	if strings.HasPrefix(mode, "active-backup") {
		lan.Enslave("br", second)
	} else {
		lag := "lag" + b.number
		lan.Release(first)
		lan.Run("ip link add "+lag+bond, "ip link set "+first+" down", "ip link set "+first+" master "+lag,
			"ip link set "+second+" down", "ip link set "+second+" master "+lag)
		lan.Enslave("br", lag)
	}
	b.node.Run("ip link add bond0"+bond, "ip link set red0 down", "ip link set red0 master bond0", "ip link set red1 down",
		"ip link set red1 master bond0", "ip link set bond0 up")
	if strings.HasPrefix(mode, "802.3ad") {
		for port, at := range map[string]*nodetest.Namespace{"red0": b.node.Namespace, "red1": b.node.Namespace, first: lan, second: lan} {
			b.await(port+" to be in the aggregate", func() bool {
				const both = 0x30 // collecting and distributing, IEEE 802.1AX section 6.4.2.3
				slave, ok := at.Get(port).Attrs().Slave.(*netlink.BondSlave)
				return ok && slave.AdActorOperPortState&both == both && slave.AdPartnerOperPortState&both == both
			})
		}
	}
}

// hostBehind moves the addresses of the LAN's host to a link on its NIC.
func hostBehind(w *nodetest.World, kind string) {
	cidrs := []string{nodetest.Gateway + "/24", nodetest.LANHost + "/24", nodetest.Gateway6 + "/64", nodetest.LANHost6 + "/64"}
	w.Host.Run("ip address flush dev eth0", "ip link add link eth0 name inner "+kind, "ip link set inner up")
	w.Host.Address("inner", cidrs...)
}

func (s *suite) hostNIC() string {
	if _, err := s.world.Host.Link.LinkByName("inner"); err == nil {
		return "inner"
	}
	return "eth0"
}
