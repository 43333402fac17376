package nat

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip/test/lab"
)

var update = flag.Bool("update", false, "write the golden files of this test instead of comparing with them")

// golden compares text with testdata/name.
func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(text, "\n")); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// The plans that people see.
func TestText(t *testing.T) {
	for name, p := range examples() {
		t.Run(name, func(t *testing.T) { golden(t, name+".plan.nft", Text(p)) })
	}
}

// What nft lists for our rules together with KubeVirt's, and that nothing of ours is left after Remove while KubeVirt's
// is as it was.
func TestListing(t *testing.T) {
	t.Parallel()
	for name, p := range examples() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := lab.New(t, "pod")
			runNFT(t, ns, kubevirtCommands())
			untouched := ns.Ruleset(t)
			kernel := openKernel(t, ns)
			if err := kernel.Apply(Desired(p)); err != nil {
				t.Fatal(err)
			}
			golden(t, name+".list.nft", ns.Ruleset(t))
			if err := kernel.Remove(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(untouched, ns.Ruleset(t)); diff != "" {
				t.Errorf("after Remove (-KubeVirt alone +have):\n%s", diff)
			}
		})
	}
}

func kubevirtCommands() []string {
	v4 := lab.Masquerade{Family: "ip", PodInterface: "eth0", Bridge: "k6t-eth0", Guest: lab.Guest4, Gateway: lab.Router4}
	v6 := lab.Masquerade{Family: "ip6", PodInterface: "eth0", Bridge: "k6t-eth0", Guest: lab.Guest6, Gateway: lab.Router6}
	return append(v4.Commands(), v6.Commands()...)
}

// After every prefix of KubeVirt's commands: our rules go in, the rest of the commands succeeds, and the end is the same
// but for the order in which things are listed.
func TestEveryPrefixOfKubeVirtsCommands(t *testing.T) {
	t.Parallel()
	commands := kubevirtCommands()
	p := examples()["dual"]
	var want []string
	for n := range len(commands) + 1 {
		ns := lab.New(t, "pod")
		runNFT(t, ns, commands[:n])
		kernel := openKernel(t, ns)
		if err := kernel.Apply(Desired(p)); err != nil {
			t.Fatalf("after %d commands: %v", n, err)
		}
		runNFT(t, ns, commands[n:])
		have, err := kernel.Read()
		if err != nil {
			t.Fatal(err)
		}
		if d := Desired(p).Diff(have); d != "" {
			t.Errorf("after %d commands: %s", n, d)
		}
		blocks := listedBlocks(ns.Ruleset(t))
		if want == nil {
			want = blocks
		}
		if diff := cmp.Diff(want, blocks); diff != "" {
			t.Errorf("rules after %d of KubeVirt's commands (-rules first +have):\n%s", n, diff)
		}
	}
}

// listedBlocks returns the chains, sets and counters of a listing, sorted.
func listedBlocks(listing string) []string {
	var blocks []string
	for _, table := range strings.Split(listing, "\n}\n") {
		header, body, _ := strings.Cut(table, "\n")
		for _, block := range strings.Split(body, "\n\n") {
			blocks = append(blocks, header+"\n"+block)
		}
	}
	slices.Sort(blocks)
	return blocks
}

// Whatever somebody does to our rules is seen and put right, and what is not ours stays.
func TestTampering(t *testing.T) {
	t.Parallel()
	const foreign = `
add table ip nat
add chain ip nat theirs
add rule ip nat theirs counter
add set ip nat theirs_too { type ipv4_addr; elements = { 192.0.2.1 }; }
`
	for name, script := range map[string]string{
		"rule deleted":      "flush chain ip nat floatip_guard",
		"behind a goto":     "flush chain ip nat floatip_stray",
		"goto elsewhere":    "flush chain ip nat floatip_arriving\n add rule ip nat floatip_arriving iifname fip0 goto floatip_guest",
		"rule added":        "add rule ip nat floatip_guard accept",
		"rule before ours":  "insert rule ip6 nat floatip_prerouting accept",
		"rules swapped":     swapLegRules,
		"rule replaced":     "flush chain ip nat floatip_out\n add rule ip nat floatip_out tcp flags syn tcp option maxseg size set 1000",
		"chain deleted":     "delete chain ip nat floatip_postrouting",
		"chain flushed":     "flush chain ip6 nat floatip_out",
		"chain added":       "add chain ip nat floatip_mine { type filter hook forward priority 5; }",
		"policy drop":       "add chain ip nat floatip_guard { type filter hook postrouting priority 110; policy drop; }",
		"priority changed":  "delete chain ip nat floatip_guard\n add chain ip nat floatip_guard { type filter hook postrouting priority 90; }",
		"element deleted":   "delete element ip nat floatip_cluster { 10.0.2.0/24 }",
		"element added":     "add element ip nat floatip_cluster { 198.51.100.0/24 }",
		"port added":        "add element ip nat floatip_ports { tcp . 23 }",
		"link added":        "add element ip nat floatip_links { \"eth0\" }",
		"set of other type": "flush chain ip nat floatip_guest\n delete set ip nat floatip_cluster\n add set ip nat floatip_cluster { type ipv4_addr; }",
		"set added":         "add set ip nat floatip_mine { type ipv4_addr; }",
		"counter added":     "add counter ip nat floatip_mine",
		"table flushed":     "flush table ip nat",
		"table deleted":     "delete table ip nat",
		"both deleted":      "flush ruleset",
		"nothing of sixth":  "delete table ip6 nat",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := lab.New(t, "pod")
			kernel := openKernel(t, ns)
			want := Desired(examples()["ports"])
			if err := kernel.Apply(want); err != nil {
				t.Fatal(err)
			}
			ns.NFT(t, script)
			ns.NFT(t, foreign)
			have, err := kernel.Read()
			if err != nil {
				t.Fatal(err)
			}
			if want.Diff(have) == "" {
				t.Fatal("the change was not seen")
			}
			if err := kernel.Apply(want); err != nil {
				t.Fatal(err)
			}
			if have, err = kernel.Read(); err != nil || want.Diff(have) != "" {
				t.Errorf("after repair: %s, %v", want.Diff(have), err)
			}
			if listing := ns.Ruleset(t); !strings.Contains(listing, "chain theirs") || !strings.Contains(listing, "192.0.2.1") {
				t.Errorf("what is not ours was touched:\n%s", listing)
			}
		})
	}
}

const swapLegRules = `flush chain ip nat floatip_postrouting
add rule ip nat floatip_postrouting oifname "fip0" ip saddr 10.0.2.2 snat to 192.168.100.50
add rule ip nat floatip_postrouting oifname "k6t-eth0" ct original ip daddr 192.168.100.50 ip saddr 10.0.2.2 snat to 192.168.100.50`

// From any description to any other in one step.
func TestEveryChange(t *testing.T) {
	t.Parallel()
	all := examples()
	ns := lab.New(t, "pod")
	kernel := openKernel(t, ns)
	for from, p := range all {
		for to, q := range all {
			if err := kernel.Apply(Desired(p)); err != nil {
				t.Fatalf("%s: %v", from, err)
			}
			if err := kernel.Apply(Desired(q)); err != nil {
				t.Fatalf("%s to %s: %v", from, to, err)
			}
			have, err := kernel.Read()
			if err != nil {
				t.Fatal(err)
			}
			if d := Desired(q).Diff(have); d != "" {
				t.Errorf("%s to %s: %s", from, to, d)
			}
		}
	}
}
