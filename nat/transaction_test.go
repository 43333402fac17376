package nat

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/test/lab"
)

// generation counts the transactions of a namespace: the kernel adds one for each that it carries out (nft_net.base_seq
// and nf_tables_getgen in net/netfilter/nf_tables_api.c).
func generation(t *testing.T, ns *lab.Namespace) uint32 {
	t.Helper()
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil || len(answers) != 1 {
		t.Fatalf("%d answers, %v", len(answers), err)
	}
	attributes, err := netlink.NewAttributeDecoder(answers[0].Data[4:])
	if err != nil {
		t.Fatal(err)
	}
	attributes.ByteOrder = binary.BigEndian
	for attributes.Next() {
		if attributes.Type() == unix.NFTA_GEN_ID {
			return attributes.Uint32()
		}
	}
	t.Fatal("no generation in the kernel's answer")
	return 0
}

// No packet sees half of a change: the first rules of both families, each change between descriptions, a repair and the
// removal are one transaction each.
func TestOneTransaction(t *testing.T) {
	ns := lab.New(t, "pod")
	kernel := openKernel(t, ns)
	runNFT(t, ns, kubevirtCommands())
	all := examples()
	apply := func(what string, want Tables) {
		t.Helper()
		before := generation(t, ns)
		if err := kernel.Apply(want); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if n := generation(t, ns) - before; n != 1 {
			t.Errorf("%s: %d transactions, want 1", what, n)
		}
	}
	for _, name := range []string{"dual", "ports", "walled", "ipv4", "routed", "dual"} {
		apply(name, Desired(all[name]))
	}
	for _, damage := range []string{"flush table ip nat", "delete table ip6 nat", "flush ruleset"} {
		ns.NFT(t, damage)
		apply("after "+damage, Desired(all["dual"]))
	}
	apply("removal", Tables{})
}

// A change that the kernel refuses at its last message leaves everything as it was.
func TestRefusedChangeChangesNothing(t *testing.T) {
	ns := lab.New(t, "pod")
	kernel := openKernel(t, ns)
	if err := kernel.Apply(Desired(examples()["dual"])); err != nil {
		t.Fatal(err)
	}
	// Somebody's rule leads to a set that the next description does not have.
	ns.NFT(t, `
add chain ip6 nat theirs
add set ip6 nat floatip_ports { type ipv6_addr; }
add rule ip6 nat theirs ip6 saddr @floatip_ports accept`)
	before := ns.Ruleset(t)
	if err := kernel.Apply(Desired(examples()["ports"])); err == nil {
		t.Fatal("want a refusal")
	}
	if after := ns.Ruleset(t); after != before {
		t.Errorf("the refused change left something:\n%s", after)
	}
}

// A table that somebody has put to sleep (nft "flags dormant") has all of its rules and none of their effect. That is
// seen like any other change, and put right.
func TestDormantTable(t *testing.T) {
	for _, table := range []string{"ip nat", "ip6 nat"} {
		ns := lab.New(t, "pod")
		kernel := openKernel(t, ns)
		want := Desired(examples()["dual"])
		if err := kernel.Apply(want); err != nil {
			t.Fatal(err)
		}
		ns.NFT(t, "add table "+table+" { flags dormant; }")
		have, err := kernel.Read()
		if err != nil {
			t.Fatal(err)
		}
		if d := want.Diff(have); !strings.Contains(d, table) || !strings.Contains(d, "dormant") {
			t.Errorf("difference: have %q, want one of table %s that says dormant", d, table)
		}
		if err := kernel.Apply(want); err != nil {
			t.Fatal(err)
		}
		have, err = kernel.Read()
		if err != nil || want.Diff(have) != "" || strings.Contains(ns.Ruleset(t), "dormant") {
			t.Errorf("after repair: %s, %v\n%s", want.Diff(have), err, ns.Ruleset(t))
		}
	}
}

// What was read may be out of date when it is written: somebody deleted what shall be emptied, or made what shall be made.
func TestReplaceOfWhatHasChangedMeanwhile(t *testing.T) {
	want := Desired(examples()["dual"])
	for name, tc := range map[string]struct {
		before    Tables
		meanwhile string
	}{
		"a chain deleted":   {Desired(examples()["ports"]), "delete chain ip nat floatip_postrouting"},
		"the table deleted": {Desired(examples()["ports"]), "delete table ip6 nat"},
		"a chain of ours":   {Tables{}, "add table ip nat\n add chain ip nat floatip_guard { type filter hook forward priority 0; }"},
		"a set of ours":     {Tables{}, "add table ip6 nat\n add set ip6 nat floatip_links { type ipv6_addr; }"},
	} {
		t.Run(name, func(t *testing.T) {
			ns := lab.New(t, "pod")
			kernel := openKernel(t, ns)
			if err := kernel.Apply(tc.before); err != nil {
				t.Fatal(err)
			}
			read, err := kernel.Read()
			if err != nil {
				t.Fatal(err)
			}
			ns.NFT(t, tc.meanwhile)
			if err := kernel.Replace(read, want); err != nil {
				t.Fatal(err)
			}
			have, err := kernel.Read()
			if d := want.Diff(have); d != "" || err != nil {
				t.Errorf("%s, %v", d, err)
			}
		})
	}
}
