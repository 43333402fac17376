package sidecar

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/handover"
	"floatip.io/floatip/test/lab"
)

// setup is a VM whose parts come in an order of the test's choice.
type setup struct {
	t       *testing.T
	cloud   *lab.Cloud
	vm      *lab.VM
	kubelet *kubelet
	// commands are KubeVirt's, of which some ran already.
	commands []string
	ran      int
}

// kubevirt runs KubeVirt's commands up to the nth.
func (s *setup) kubevirt(n int) {
	for _, command := range s.commands[s.ran:n] {
		s.vm.Pod.Run(s.t, "", "nft", command)
	}
	s.ran = n
}

func (s *setup) allOfKubevirt() { s.kubevirt(len(s.commands)) }

func (s *setup) halfOfKubevirt() { s.kubevirt(len(s.commands) / 2) }

func (s *setup) sidecar() {
	r := start(s.t, Config{NATFile: s.kubelet.path(), NetNS: file(s.t, s.vm.Pod)})
	r.awaitPhase(s.t, handover.PhaseInstalled)
}

func (s *setup) leg() { s.vm.PlugLeg(s.t) }

// guest starts to send: from sockets that stay, and from a new one each time; to the outside and to a pod.
func (s *setup) guest() {
	for _, to := range []string{lab.Outside4, lab.Outside6, lab.Peer4, lab.Peer6} {
		stop := make(chan struct{})
		ended := make(chan struct{})
		kept, err := s.vm.Guest.Dial("udp", to, 80, 0, patience)
		if err != nil {
			s.t.Fatal(err)
		}
		stream, _ := s.vm.Guest.Dial("tcp", to, 2000, 0, silence) // nil while nobody answers
		go func() {
			defer close(ended)
			defer kept.Close()
			chatter(s.vm.Guest, to, kept, stream, stop)
		}()
		s.t.Cleanup(func() { close(stop); <-ended })
	}
}

func chatter(guest *lab.Namespace, to string, kept, stream net.Conn, stop <-chan struct{}) {
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for n := 0; ; n++ {
		kept.Write([]byte("?"))
		if stream != nil {
			// When nobody answers any more its buffer fills: without an end the write would wait for TCP to give up, which
			// takes a quarter of an hour.
			stream.SetWriteDeadline(time.Now().Add(time.Millisecond))
			stream.Write([]byte("!"))
		}
		if n%4 == 0 {
			if fresh, err := guest.Dial("udp", to, 81, 0, patience); err == nil {
				fresh.Write([]byte("?"))
				fresh.Close()
			}
		}
		select {
		case <-stop:
			if stream != nil {
				stream.Close()
			}
			return
		case <-again.C:
		}
	}
}

// seenOutside waits until the guest is seen there under its floating addresses.
func (s *setup) seenOutside() {
	for to, floating := range map[string]string{lab.Outside4: s.vm.Floating4, lab.Outside6: s.vm.Floating6} {
		lab.Within(s.t, patience, "the guest is seen as "+floating, func() bool {
			seen, err := s.vm.Guest.Ask("udp", to, 80, 0, silence)
			return err == nil && seen.Addr().String() == floating
		})
	}
}

// record makes the kernel of the node keep every source address that leaves the pod, by eth0 and by the leg. Neighbour
// discovery is between pod and node and never forwarded.
func record(t *testing.T, node *lab.Namespace) {
	t.Helper()
	const sets = `
	set sources4 { type ipv4_addr; flags dynamic; size 1024; }
	set sources6 { type ipv6_addr; flags dynamic; size 1024; }`
	const rules = `
		add @sources4 { ip saddr }
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld2-listener-report } return
		add @sources6 { ip6 saddr }`
	node.NFT(t, "table netdev eth0 {"+sets+`
	chain in { type filter hook ingress device "cni-vm1" priority 0;`+rules+`
	}
}
table inet leg {`+sets+`
	chain in { type filter hook prerouting priority raw; iifname "fip1" jump record; }
	chain record {`+rules+`
	}
}`)
}

var elements = regexp.MustCompile(`elements = \{([^}]*)\}`)

// sources returns what record saw on one of its tables, sorted.
func sources(t *testing.T, node *lab.Namespace, table string) (out []string) {
	t.Helper()
	listing := node.Run(t, "", append([]string{"nft", "list", "table"}, strings.Fields(table)...)...)
	for _, match := range elements.FindAllStringSubmatch(listing, -1) {
		for _, element := range strings.Split(match[1], ",") {
			out = append(out, strings.Fields(element)[0])
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// From the moment at which KubeVirt starts a guest, which is when its table is complete, and in whatever order the
// sidecar and the leg come: no packet ever leaves by eth0 under another address than the pod's, and none by the leg
// under another than the floating one.
func TestNoPacketLeavesUnderAWrongAddress(t *testing.T) {
	t.Parallel()
	all := (*setup).allOfKubevirt
	half := func(n int) func(*setup) { return func(s *setup) { s.kubevirt(n) } }
	for name, steps := range map[string][]func(*setup){
		"sidecar, KubeVirt, guest, leg": {(*setup).sidecar, all, (*setup).guest, (*setup).leg},
		"sidecar, leg, KubeVirt, guest": {(*setup).sidecar, (*setup).leg, all, (*setup).guest},
		"table, sidecar, rest, guest":   {half(1), (*setup).sidecar, all, (*setup).guest, (*setup).leg},
		"chains, sidecar, rest, guest":  {half(7), (*setup).sidecar, (*setup).leg, all, (*setup).guest},
		"IPv4, sidecar, IPv6, guest":    {half(13), (*setup).sidecar, all, (*setup).guest, (*setup).leg},
		"KubeVirt, guest, sidecar, leg": {all, (*setup).guest, (*setup).sidecar, (*setup).leg},
		"KubeVirt, guest, leg, sidecar": {all, (*setup).guest, (*setup).leg, (*setup).sidecar},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSetup(t)
			for _, step := range steps {
				step(s)
			}
			s.seenOutside()
			s.wantSources(s.vm.Floating4, s.vm.Floating6)
		})
	}
}

// The same beside the tables of earlier releases of KubeVirt and their variants.
func TestNoPacketLeavesUnderAWrongAddressBesideAnyRelease(t *testing.T) {
	files, err := filepath.Glob("../testdata/kubevirt/v[01].[0-5]*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d releases, %v", len(files), err)
	}
	files = append(files, "../testdata/kubevirt/v1.9.0-port-ranges-dual-stack.txt")
	for _, file := range files {
		release := strings.TrimSuffix(filepath.Base(file), ".txt")
		for name, steps := range map[string][]func(*setup){
			"half, sidecar, rest, guest, leg": {(*setup).halfOfKubevirt, (*setup).sidecar, (*setup).allOfKubevirt, (*setup).guest, (*setup).leg},
			"KubeVirt, guest, leg, sidecar":   {(*setup).allOfKubevirt, (*setup).guest, (*setup).leg, (*setup).sidecar},
		} {
			t.Run(release+"/"+name, func(t *testing.T) {
				s := newSetup(t)
				s.commands = lines(t, file)
				if strings.Contains(release, "-port") {
					list := []floatip.Port{{Protocol: "TCP", Number: 22}, {Protocol: "UDP", Number: 80}}
					if strings.Contains(release, "-ranges") {
						list = []floatip.Port{{Protocol: "TCP", Number: 20, Last: 30}, {Protocol: "UDP", Number: 5000, Last: 5010}}
					}
					s.kubelet.describe(t, description(binding(s.vm.Floating4, list...), binding(s.vm.Floating6, list...)))
				}
				for _, step := range steps {
					step(s)
				}
				s.seenOutside()
				s.wantSources(s.vm.Floating4, s.vm.Floating6)
			})
		}
	}
}

func lines(t *testing.T, path string) []string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(raw)), "\n")
}

// Even a guest that sends before there is any table, which KubeVirt never lets happen, is seen on the leg under the
// floating address only.
func TestTheLegKnowsOneAddress(t *testing.T) {
	t.Parallel()
	all := (*setup).allOfKubevirt
	for name, steps := range map[string][]func(*setup){
		"guest, leg, sidecar, KubeVirt": {(*setup).guest, (*setup).leg, (*setup).sidecar, all},
		"guest, sidecar, KubeVirt, leg": {(*setup).guest, (*setup).sidecar, all, (*setup).leg},
		"guest, KubeVirt, leg, sidecar": {(*setup).guest, all, (*setup).leg, (*setup).sidecar},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSetup(t)
			for _, step := range steps {
				step(s)
			}
			s.seenOutside()
			s.wantSourcesBy("inet leg", s.vm.Floating4, s.vm.Floating6)
		})
	}
}

// As TestNoPacketLeavesUnderAWrongAddress, while the guest has connections by the leg and something happens in the pod.
func TestNoPacketLeavesUnderAWrongAddressWhateverHappens(t *testing.T) {
	t.Parallel()
	for name, happens := range map[string]func(*setup){
		"the leg is unplugged": func(s *setup) { s.vm.Pod.IP(s.t, "link del fip0") },
		"the leg goes down":    func(s *setup) { s.vm.Pod.IP(s.t, "link set fip0 down") },
		"an address goes": func(s *setup) {
			s.describe(binding(s.vm.Floating6))
		},
		"an address is replaced": func(s *setup) {
			s.describe(binding("192.168.100.59"), binding(s.vm.Floating6))
			s.describe(binding(s.vm.Floating4), binding(s.vm.Floating6))
		},
		"chains of ours are flushed": func(s *setup) {
			for _, chain := range []string{"ip nat floatip_guest", "ip6 nat floatip_arriving", "ip nat floatip_guard", "ip nat floatip_out"} {
				s.vm.Pod.NFT(s.t, "flush chain "+chain)
				holds(s.t, kernel(s.t, s.vm.Pod), description(binding(s.vm.Floating4), binding(s.vm.Floating6)))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSetup(t)
			for _, step := range []func(*setup){(*setup).sidecar, (*setup).leg, (*setup).allOfKubevirt, (*setup).guest} {
				step(s)
			}
			s.seenOutside()
			happens(s)
			lab.Within(t, patience, "the guest calls pods all the time", func() bool {
				_, err := s.vm.Guest.Ask("udp", lab.Peer4, 80, 0, silence)
				return err == nil
			})
			want := []string{s.vm.Floating4, s.vm.Floating6}
			if strings.Contains(name, "replaced") {
				want = append(want, "192.168.100.59")
			}
			s.wantSources(want...)
		})
	}
}

// describe gives the sidecar new bindings and waits until they are in force.
func (s *setup) describe(bindings ...floatip.Binding) {
	s.kubelet.describe(s.t, description(bindings...))
	holds(s.t, kernel(s.t, s.vm.Pod), description(bindings...))
}

func newSetup(t *testing.T) *setup {
	t.Helper()
	c := lab.NewCloud(t)
	s := &setup{t: t, cloud: c, vm: c.AddVM(t, 1), kubelet: newKubelet(t)}
	s.commands = s.vm.KubeVirtCommands()
	for _, ns := range []*lab.Namespace{c.Outside, c.Peer} {
		ns.Serve(t, 80)
		ns.Echo(t, 2000)
	}
	s.kubelet.describe(t, description(binding(s.vm.Floating4), binding(s.vm.Floating6)))
	record(t, c.Node)
	return s
}

// wantSources compares what left the pod with what may, and wants that something left either way.
func (s *setup) wantSources(leg ...string) {
	s.t.Helper()
	s.wantSourcesBy("netdev eth0", s.vm.Pod4, s.vm.Pod6)
	s.wantSourcesBy("inet leg", leg...)
}

func (s *setup) wantSourcesBy(table string, want ...string) {
	s.t.Helper()
	slices.Sort(want)
	if diff := cmp.Diff(want, sources(s.t, s.cloud.Node, table)); diff != "" {
		s.t.Errorf("sources by %s (-want +got):\n%s", table, diff)
	}
}
