package podlink

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"floatip.io/floatip/nat"
)

// Counters returns the figures of every translated address, IPv4 first. They start at zero when the address comes to
// the node, and are lost when somebody else removes the table.
func (n *Node) Counters() ([]nat.Counter, error) {
	found := map[netip.Addr]*nat.Counter{}
	for _, l := range layouts() {
		have, err := n.read(l)
		if err != nil {
			return nil, err
		}
		if have.Rules != l.text() {
			continue
		}
		conn, err := n.nft()
		if err != nil {
			return nil, err
		}
		for _, name := range []string{setIn, setOut, setRefused} {
			elements, err := conn.GetSetElements(l.set(name))
			if err != nil {
				return nil, fmt.Errorf("read set %s of table %s: %w", name, tableName, err)
			}
			for _, e := range elements {
				a, _ := netip.AddrFromSlice(e.Key)
				if found[a] == nil {
					found[a] = &nat.Counter{Floating: a}
				}
				if e.Counter == nil {
					continue
				}
				figure := nat.Figure{Packets: e.Counter.Packets, Bytes: e.Counter.Bytes}
				switch name {
				case setIn:
					found[a].In = figure
				case setOut:
					found[a].Out = figure
				case setRefused:
					found[a].Refused = figure
				}
			}
		}
	}
	var list []nat.Counter
	for _, c := range found {
		list = append(list, *c)
	}
	slices.SortFunc(list, func(a, b nat.Counter) int {
		return cmp.Or(a.Floating.Compare(b.Floating))
	})
	return list, nil
}
