package lan

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
)

// serviceRules stand in for kube-proxy and for the CNI's outgoing NAT on one node.
func serviceRules(n Node) string {
	return fmt.Sprintf(`
table ip kube-services {
	chain prerouting {
		type nat hook prerouting priority dstnat;
		ip daddr %[1]s tcp dport %[2]d dnat to %[3]s
	}
	chain output {
		type nat hook output priority -100;
		ip daddr %[1]s tcp dport %[2]d dnat to %[3]s
	}
	chain postrouting {
		type nat hook postrouting priority srcnat;
		ip saddr %[4]s ip daddr != { %[5]s, %[6]s, %[7]s } masquerade
	}
}
table ip6 kube-services {
	chain postrouting {
		type nat hook postrouting priority srcnat;
		ip6 saddr %[8]s ip6 daddr != { %[9]s, %[10]s } masquerade
	}
}
`, KubernetesService.Addr(), KubernetesService.Port(), APIServer, n.PodNetwork, Pods, Green, Services,
		n.PodNetwork6, Pods6, Green6)
}

// Names of the counters of a pod's anti-spoofing filter.
const (
	foreignSource      = "foreign-source"
	foreignDestination = "foreign-destination"
)

// filterTable is the nft table of the pod behind a veth.
func filterTable(link string) string { return "antispoof-" + link }

// antispoofRules drop on the node's end of a pod's veth what does not carry the pod's own address, both ways. Neighbour
// discovery and multicast reports use link-local, unspecified and multicast addresses.
func antispoofRules(p Pod) string {
	return fmt.Sprintf(`
table netdev %[1]s {
	counter %[2]s { }
	counter %[3]s { }
	chain from-pod {
		type filter hook ingress device "%[4]s" priority filter;
		ip saddr != %[5]s counter name "%[2]s" drop
		ip6 saddr != { %[6]s, fe80::/10, :: } counter name "%[2]s" drop
		ether type arp arp saddr ip != %[5]s counter name "%[2]s" drop
	}
	chain to-pod {
		type filter hook egress device "%[4]s" priority filter;
		ip daddr != %[5]s counter name "%[3]s" drop
		ip6 daddr != { %[6]s, fe80::/10, ff00::/8 } counter name "%[3]s" drop
	}
}
`, filterTable(p.Link), foreignSource, foreignDestination, p.Link, p.Address, p.Address6)
}

// Drops says how many packets a pod's anti-spoofing filter has dropped.
type Drops struct {
	// FromPod counts packets whose source was not the pod's address.
	FromPod uint64
	// ToPod counts packets whose destination was not the pod's address.
	ToPod uint64
}

// Drops reads the counters of the pod's anti-spoofing filter.
func (l *LAN) Drops(p Pod) (Drops, error) {
	node, err := l.Node(p.Node)
	if err != nil {
		return Drops{}, err
	}
	out, err := Exec(context.Background(), node.Namespace,
		"nft", "-j", "list", "counters", "table", "netdev", filterTable(p.Link))
	if err != nil {
		return Drops{}, err
	}
	return parseDrops(out)
}

// parseDrops reads nft's JSON (libnftables-json(5)).
func parseDrops(out string) (Drops, error) {
	var listing struct {
		Nftables []struct {
			Counter *struct {
				Name    string
				Packets uint64
			}
		}
	}
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&listing); err != nil {
		return Drops{}, fmt.Errorf("read nft's list of counters: %w", err)
	}
	var d Drops
	for _, object := range listing.Nftables {
		switch c := object.Counter; {
		case c == nil:
		case c.Name == foreignSource:
			d.FromPod = c.Packets
		case c.Name == foreignDestination:
			d.ToPod = c.Packets
		}
	}
	return d, nil
}
