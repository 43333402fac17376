package leg

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/netns"
)

func (a application) addBridge() error {
	if !a.want.bridge || a.have.bridge {
		return nil
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = Bridge, bridgeMAC[:]
	var ageing uint32
	var snooping bool
	bridge := &netlink.Bridge{LinkAttrs: attrs, AgeingTime: &ageing, MulticastSnooping: &snooping}
	old, err := a.node.link(Bridge)
	if err != nil {
		return err
	}
	if old == nil {
		err = a.node.netlink.LinkAdd(bridge)
	} else {
		bridge.Index = old.Attrs().Index
		err = errors.Join(a.node.netlink.LinkModify(bridge), a.node.netlink.LinkSetHardwareAddr(old, bridgeMAC[:]))
	}
	if err == nil {
		err = a.node.netlink.LinkSetUp(bridge)
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", Bridge, err)
	}
	a.report.changed("bridge %s", Bridge)
	return nil
}

// setPort enslaves the node's end of a leg, with all its settings made before it carries a frame.
func (a application) setPort(name string) error {
	p := a.want.ports[name]
	bridge, err := a.node.netlink.LinkByName(Bridge)
	if err != nil {
		return fmt.Errorf("port %s: %w", name, err)
	}
	link, err := a.node.netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("port %s: %w", name, err)
	}
	steps := []func() error{
		func() error { return a.node.netlink.LinkSetMaster(link, bridge) },
		func() error { return a.node.setPortFlags(link.Attrs().Index, p) },
		func() error { return a.node.netlink.LinkSetUp(link) },
	}
	if p.MTU > 0 && link.Attrs().MTU != p.MTU {
		steps = append(steps, func() error { return a.node.netlink.LinkSetMTU(link, p.MTU) })
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("port %s: %w", name, err)
		}
	}
	a.report.changed("port %s", name)
	return awaitUsable(a.node.netlink, name)
}

func (n *Node) setPortFlags(index int, p port) error {
	return netns.Do(n.ns, func() error {
		req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
		header := nl.NewIfInfomsg(unix.AF_BRIDGE)
		header.Index = int32(index)
		req.AddData(header)
		info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
		for kind, on := range map[int]bool{
			nl.IFLA_BRPORT_ISOLATED: p.Isolated, nl.IFLA_BRPORT_LEARNING: p.Learning,
			nl.IFLA_BRPORT_UNICAST_FLOOD: p.Flood, nl.IFLA_BRPORT_MCAST_FLOOD: p.McastFlood,
			nl.IFLA_BRPORT_BCAST_FLOOD: p.BcastFlood,
		} {
			var value byte
			if on {
				value = 1
			}
			info.AddRtAttr(kind, []byte{value})
		}
		req.AddData(info)
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
}

func (a application) removeLink(name string) error {
	link, err := a.node.link(name)
	if err != nil || link == nil {
		return err
	}
	return a.removed(a.node.netlink.LinkDel(link), "link %s", name)
}
