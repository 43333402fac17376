//go:build secondkernel

package node

import (
	"os"
	"strings"
	"testing"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/fastpath"
	"floatip.io/floatip/nat/node/nodetest"
)

// TestLeanKernel: nothing is tracked or filtered on the node when the agent starts, so that the kernel has loaded nothing for
// it, and has not the means for a fast path nor the bridges' filters. The agent is content, says once that there is no fast
// path, and the address works.
func TestLeanKernel(t *testing.T) {
	s := newSuite(t, floatip.DeliveryLeg)
	s.start()
	s.publish()
	s.awaitReport("a round", func(Report) bool { return true })
	loaded := func(module string) bool {
		list, err := os.ReadFile("/proc/modules")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains("\n"+string(list), "\n"+module+" ")
	}
	if loaded("nf_conntrack") || loaded("br_netfilter") {
		t.Error("the kernel tracks connections or filters on bridges, which this test must begin without")
	}
	if problem := s.status().Problem; problem != "" {
		t.Errorf("the agent has the problem %q on a node without an address", problem)
	}
	s.addDual(1, nil)
	s.publish()
	s.allReady()
	s.check(t, flow{"host", "vm1's", "tcp", 80, "host"}, flow{"vm1", "outside", "udp", 80, "vm1's"})
	s.tells("floatip_agent_fast_path 0")
	if have := s.status(); have.Problem != "" || !strings.Contains(have.NoFastPath, fastpath.ErrNotSupported.Error()) {
		t.Errorf("status is %+v, want no problem, and %q as why there is no fast path", have, fastpath.ErrNotSupported)
	}
	for range 3 {
		s.last = nil
		s.agent.Recheck()
		s.awaitReport("another round", func(Report) bool { return true })
	}
	if n := s.log.count("no fast path"); n != 1 {
		t.Errorf("the log says %d times that there is no fast path, want once", n)
	}
	s.check(t, flow{"host", "vm1's", "icmp", 0, "host"}, flow{"outside", "vm1's", "tcp", 80, "outside"})
}

// TestKernelWithoutIPv6: the kernel was started with ipv6.disable=1. IPv4 addresses work, nothing is left undone, and an
// IPv6 address of the same VM says what is missing.
func TestKernelWithoutIPv6(t *testing.T) {
	if nodetest.HasIPv6() {
		t.Fatal("this kernel has IPv6, which this test must do without")
	}
	b := newBench(t)
	b.addVM(1, fifty.String())
	b.start()
	b.publish()
	b.awaitReport("ready", ready(fifty.String()))
	b.answers("vm1", fifty.String())
	b.tells("floatip_agent_fast_path 1")
	b.await("a round without a problem", func() bool {
		status, err := AskStatus(t.Context(), b.node.File)
		return err == nil && status.Problem == ""
	})
}
