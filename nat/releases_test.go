package nat

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip/test/lab"
)

// releases are the nft commands of KubeVirt's releases, one a line, for both families and the pod of the lab's first VM.
// v0.58 loads its chains from a file (cmd/virt-handler/ipv4-nat.nft) where nft works, and falls back on iptables, which
// cannot be shared; v0.59 to v1.0 make them one by one (pkg/network/infraconfigurators/masquerade.go); v1.1 to v1.8 list
// ports as sets, and translate towards the guest before the way back
// (pkg/network/setup/netpod/masquerade/masquerade.go). Names, hooks and priorities never changed.
var releases = []string{
	"v0.58", "v0.58-ports", "v1.0", "v1.0-ports", "v1.0-istio", "v1.5", "v1.5-ports", "v1.5-istio",
}

func releaseCommands(t *testing.T, release string) []string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "kubevirt", release+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(raw), "\n"), "\n")
}

// listed gives a VM the port list that the commands of a release were made for.
func listed(release string) []lab.Port {
	if !strings.HasSuffix(release, "-ports") {
		return nil
	}
	return []lab.Port{{Protocol: "tcp", Number: 22}, {Protocol: "udp", Number: 80}}
}

// The commands of every release succeed whenever our rules come, KubeVirt's chains are what they are without us, and
// ours are the same each time.
func TestReleasesOfKubeVirt(t *testing.T) {
	t.Parallel()
	for _, release := range releases {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			commands := releaseCommands(t, release)
			p := examples()["dual"]
			alone := lab.New(t, "alone")
			runNFT(t, alone, commands)
			n := len(commands)
			for _, before := range []int{0, 1, 3, n / 4, n / 2, n - 1, n} {
				ns := lab.New(t, "pod")
				runNFT(t, ns, commands[:before])
				kernel := openKernel(t, ns)
				if err := kernel.Apply(Desired(p)); err != nil {
					t.Fatalf("after %d commands: %v", before, err)
				}
				runNFT(t, ns, commands[before:])
				have, err := kernel.Read()
				if err != nil || Desired(p).Diff(have) != "" {
					t.Errorf("after %d commands: %s, %v", before, Desired(p).Diff(have), err)
				}
				if err := kernel.Remove(); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(alone.Ruleset(t), ns.Ruleset(t)); diff != "" {
					t.Errorf("KubeVirt's rules, ours having come after %d commands (-alone +beside ours):\n%s", before, diff)
				}
			}
		})
	}
}

// The floating address works the same beside the table of every release and variant.
func TestFlowsBesideEveryRelease(t *testing.T) {
	t.Parallel()
	for _, release := range releases {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, map[string][]lab.Port{"vm1": listed(release)})
			vm := w.vms["vm1"]
			runNFT(t, vm.Pod, releaseCommands(t, release))
			vm.PlugLeg(t)
			if err := openKernel(t, vm.Pod).Apply(Desired(podNAT(vm))); err != nil {
				t.Fatal(err)
			}
			flows := []flow{
				{"host", "vm1's", "tcp", 22, "host"},
				{"host", "vm1's", "udp", 80, "host"},
				{"outside", "vm1's", "icmp", 0, "outside"},
				{"node", "vm1's", "tcp", 22, "node"},
				{"peer", "vm1's", "tcp", 22, "peer"},
				{"vm1", "outside", "tcp", 80, "vm1's"},
				{"vm1", "outside", "udp", 22, "vm1's"},
				{"vm1", "vm1's", "tcp", 22, "vm1's"},
				{"vm1", "peer", "tcp", 80, "vm1's pod"},
				{"vm1", "node", "udp", 80, "vm1's pod"},
				// Unlisted, or open where there is no list.
				{"host", "vm1's", "tcp", 80, ""},
				{"vm1", "vm1's", "tcp", 80, ""},
			}
			if listed(release) == nil {
				flows = append(flows[:len(flows)-2], flow{"host", "vm1's", "tcp", 7777, "host"},
					flow{"vm1", "vm1's", "udp", 7777, "vm1's"})
			}
			w.check(t, flows)
		})
	}
}
