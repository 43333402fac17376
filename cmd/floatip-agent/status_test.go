package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip/nat/handover"
	"floatip.io/floatip/nat/node"
)

func TestPrintStatus(t *testing.T) {
	now := time.Unix(1000, 0)
	s := node.NodeStatus{
		Node: "n1", Revision: "abc", Round: now.Add(-3 * time.Second), Problem: "no route", NoFastPath: "off",
		Addresses: []node.AddressStatus{
			{Address: netip.MustParseAddr("192.168.100.50"), Namespace: "demo", VM: "web", Pod: "virt-launcher-web-x", Mode: node.Active,
				Way: "fip0123456789ab", Interface: "eth1", Reason: "Ready", Announced: now.Add(-90 * time.Second),
				In: handover.Figure{Packets: 12, Bytes: 999}, Out: handover.Figure{Packets: 3, Bytes: 4_560_000}},
			{Address: netip.MustParseAddr("192.168.100.51"), Namespace: "demo", VM: "db", Pod: "virt-launcher-db-y", Mode: node.Active,
				Way: "fip0123456789ac", Interface: "eth1", Reason: "AddressTaken", Message: "another host has it",
				Conflict: "another host has it"},
		},
		Refused: []node.RefusedStatus{{Pod: "demo/forged", Reason: "it is another VM's"}},
	}
	var b strings.Builder
	if err := printStatus(&b, s, now); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"node n1, revision abc, last round 3s ago",
		"not everything is in place: no route",
		"established connections take the node's ordinary way: off",
		"ADDRESS VM POD WAY MODE STATE NIC ANNOUNCED CONFLICT IN OUT",
		"192.168.100.50 demo/web virt-launcher-web-x fip0123456789ab Active Ready eth1 1m30s ago no 12 pkts/999 B 3 pkts/4.6 MB",
		"192.168.100.51 demo/db virt-launcher-db-y fip0123456789ac Active AddressTaken eth1 never YES 0 pkts/0 B 0 pkts/0 B",
		"192.168.100.51 is not ready: another host has it",
		"refused to pod demo/forged: it is another VM's",
	}
	var have []string
	for line := range strings.Lines(b.String()) {
		have = append(have, strings.Join(strings.Fields(line), " "))
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

func TestStatusFlags(t *testing.T) {
	for _, args := range [][]string{{"-o", "yaml"}, {"more"}, {"-x"}} {
		if code := run(append([]string{"status"}, args...)); code != 2 {
			t.Errorf("%v: exit code %d, want 2", args, code)
		}
	}
}
