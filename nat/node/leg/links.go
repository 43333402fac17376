package leg

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// setPort makes the node's end of a leg what it shall be. Its guard stands before.
func (a application) setPort(name string) error {
	want, have := a.want.ports[name], a.have.ports[name]
	link, err := a.node.netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("port %s: %w", name, err)
	}
	var steps []func() error
	if have.Enslaved {
		steps = append(steps, func() error { return a.node.netlink.LinkSetNoMaster(link) })
	}
	if have.Ether != want.Ether {
		steps = append(steps, func() error { return a.node.netlink.LinkSetHardwareAddr(link, want.Ether[:]) })
	}
	if want.MTU > 0 && link.Attrs().MTU != want.MTU {
		steps = append(steps, func() error { return a.node.netlink.LinkSetMTU(link, want.MTU) })
	}
	steps = append(steps, func() error { return a.node.netlink.LinkSetUp(link) })
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("port %s: %w", name, err)
		}
	}
	a.report.changed("port %s", name)
	return nil
}

func (a application) removeLink(name string) error {
	link, err := a.node.link(name)
	if err != nil || link == nil {
		return err
	}
	return a.removed(a.node.netlink.LinkDel(link), "link %s", name)
}

// etherOf returns the link's Ethernet address, or zeros where it has none.
func etherOf(l netlink.Link) (m mac) {
	copy(m[:], l.Attrs().HardwareAddr)
	return m
}
