package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestManyAtOnce: 250 VMs start on a node at the same moment, three of them with a guest. Each address is tested,
// announced and answered for, and led to the leg of its own pod; the guests answer. Somebody flushes nftables and the
// rules: all of it comes back. Then all VMs but one end at once, for which there are as many rules as for all, and then that one,
// and nothing of theirs is left.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.wide()
	p := b.view.Pools["lan"]
	p.Unasked = false
	b.view.Pools["lan"] = p
	empty := inventory(t, b.node.Namespace)
	addresses := b.addBare(legsAtOnce - 3)
	for n, a := range []string{"192.168.100.5", "192.168.100.6", "192.168.100.7"} {
		b.addVM(n+1, a)
		addresses = append(addresses, netip.MustParseAddr(a))
	}
	b.start()
	began := time.Now()
	b.publish()
	all := func(r Report) bool {
		return !slices.ContainsFunc(addresses, func(a netip.Addr) bool { return !r.Statuses[a].Announced.True })
	}
	b.within(3*time.Minute, "all announced", all)
	t.Logf("%d addresses announced after %s", len(addresses), time.Since(began))
	b.awaitReport("the guests", ready("192.168.100.5", "192.168.100.6", "192.168.100.7"))
	check := func(when string) {
		t.Helper()
		for n := range 3 {
			b.answers(fmt.Sprintf("vm%d", n+1), fmt.Sprintf("192.168.100.%d", n+5))
		}
		h, ways := b.holding(), map[string]netip.Addr{}
		for _, a := range addresses {
			if other, shared := ways[h.Active[a]]; h.Active[a] == "" || shared || !h.Answers(a) {
				t.Fatalf("%s: %s is led to %q (as %s is), answered for by the kernel: %t", when, a, h.Active[a], other, h.Answers(a))
			}
			ways[h.Active[a]] = a
		}
	}
	check("after the start")
	mac := b.node.Get("red0").Attrs().HardwareAddr.String()
	for _, a := range addresses {
		// One that comes together with announcements of all the others may be lost in the host's own buffer.
		b.await("an answer to a probe for "+a.String(), func() bool {
			said, err := b.world.Host.Probe("eth0", a, 200*time.Millisecond)
			return err == nil && said == mac
		})
	}

	want := inventory(t, b.node.Namespace)
	b.node.Run("nft flush ruleset", "ip rule flush", "ip rule add pref 32766 lookup main", "ip rule add pref 32767 lookup default")
	b.agent.Recheck()
	var have []string
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline) && !cmp.Equal(want, have); {
		have = inventory(t, b.node.Namespace)
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("kernel after the repair (-want +got):\n%s", diff)
	}
	check("after the repair")

	rules := func() (count int) {
		for _, line := range inventory(t, b.node.Namespace) {
			if strings.Contains(line, "ip rule: ") || strings.Contains(line, "ip -6 rule: ") {
				count++
			}
		}
		return count
	}
	ofMany := rules()
	end := func(pods int) {
		b.view.Pods = slices.Clone(b.view.Pods)
		for i := range b.view.Pods[:pods] {
			b.view.Pods[i].Final = true
		}
		b.publish()
	}
	end(len(addresses) - 1)
	b.within(3*time.Minute, "all gone but one", func(r Report) bool { return len(r.Statuses) == 1 })
	if ofOne := rules(); ofOne != ofMany {
		t.Errorf("%d rules for one address and %d for %d, want the same number", ofOne, ofMany, len(addresses))
	}
	end(len(addresses))
	b.within(3*time.Minute, "all gone", func(r Report) bool { return len(r.Statuses) == 0 })
	if diff := cmp.Diff(empty, inventory(t, b.node.Namespace)); diff != "" {
		t.Errorf("left on the node (-before +after):\n%s", diff)
	}
}
