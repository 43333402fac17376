package nodetest

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Inventory lists what the namespace holds: links, rules, routes, static neighbours, forwarding entries, nftables. What
// the World makes for pods, and what the kernel adds by itself some time after a link is up or for each connection, is left
// out.
func (n *Namespace) Inventory() []string {
	n.t.Helper()
	var lines []string
	for _, args := range []string{
		"ip -br link", "ip -4 address", "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all",
		"ip neigh show nud permanent", "ip neigh show proxy", "bridge fdb", "nft -s list ruleset",
	} {
		n.Do(func() error {
			cmd := strings.Fields(args)
			// Standard error is left alone: ip complains there about peers in namespaces that have no number here.
			out, err := exec.Command(cmd[0], cmd[1:]...).Output()
			if err != nil {
				return fmt.Errorf("%s: %w", args, err)
			}
			for line := range strings.Lines(string(out)) {
				if line = strings.Join(strings.Fields(line), " "); !ofWorld(line) && !passing.MatchString(line) {
					lines = append(lines, args+": "+line)
				}
			}
			return nil
		})
	}
	slices.Sort(lines)
	return lines
}

// passing is what packets have put there: elements of sets, and what a bridge has learned of its ports.
var passing = regexp.MustCompile(`^(elements = \{ )?[0-9a-f:.]+ \. .* timeout |^[0-9a-f:]{17} dev \S+ master \S+$`)

func ofWorld(line string) bool {
	for _, mark := range []string{"cali", "100.0.0.", "fd30::", "proto kernel", "33:33:", "01:00:5e:"} {
		if strings.Contains(line, mark) {
			return true
		}
	}
	return false
}

// Flows counts the connections of the address that the namespace tracks.
func (n *Namespace) Flows(a netip.Addr) int {
	n.t.Helper()
	family := netlink.InetFamily(unix.AF_INET)
	if a.Is6() {
		family = unix.AF_INET6
	}
	flows, err := n.Link.ConntrackTableList(netlink.ConntrackTable, family)
	if err != nil {
		n.t.Fatalf("list flows: %v", err)
	}
	count := 0
	for _, f := range flows {
		for _, ip := range []net.IP{f.Forward.SrcIP, f.Forward.DstIP, f.Reverse.SrcIP, f.Reverse.DstIP} {
			if ip.Equal(a.AsSlice()) {
				count++
				break
			}
		}
	}
	return count
}

// Run runs commands inside the namespace, one after the other.
func (n *Namespace) Run(commands ...string) {
	n.t.Helper()
	for _, command := range commands {
		n.Do(func() error {
			args := strings.Fields(command)
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", command, err, out)
			}
			return nil
		})
	}
}

// Groups6 returns the IPv6 multicast groups that the link is in.
func (n *Namespace) Groups6(link string) map[netip.Addr]bool {
	n.t.Helper()
	groups := map[netip.Addr]bool{}
	n.Do(func() error {
		raw, err := os.ReadFile("/proc/thread-self/net/igmp6")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(raw)) {
			fields := strings.Fields(line) // index, device, group, users, ...
			if group, err := hex.DecodeString(fields[2]); err == nil && fields[1] == link {
				a, _ := netip.AddrFromSlice(group)
				groups[a] = true
			}
		}
		return nil
	})
	return groups
}
