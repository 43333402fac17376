package node

import (
	"fmt"
	"strings"
	"testing"

	"floatip.io/floatip/nat/node/fastpath"
	"floatip.io/floatip/nat/node/nodetest"
	"floatip.io/floatip/test/lab"
)

// TestFastPathMoved: TCP connections that came along by live migration pass the node that the guest has come to without being
// routed there, in both directions and families, whoever began. One that this node refuses to forward does not, however often
// its ends send again.
func TestFastPathMoved(t *testing.T) {
	t.Parallel()
	r := newRoadBy(t, "", fifty, fifty6)
	host := r.from.world.Host
	streams := []*stream{
		startStream(t, r.source.Guest, host, fifty.String(), 81), startStream(t, host, r.source.Guest, nodetest.Beyond, 82),
		startStream(t, r.source.Guest, host, fifty6.String(), 84), startStream(t, host, r.source.Guest, nodetest.Beyond6, 85),
	}
	refused := startStream(t, r.source.Guest, host, fifty.String(), 86)
	node := lab.At("target", r.to.node.File)
	node.NFT(t, keeper)
	lab.At("source", r.from.node.File).NFT(t, keeper)
	node.NFT(t, "insert rule inet keeper forward tcp sport 86 drop")
	node.NFT(t, "insert rule inet keeper forward tcp dport 86 drop")
	for n := range 2 {
		there := r.to
		node := lab.At("target", there.node.File)
		r.begin()
		there.await("the connections in the target's pod", func() bool { return r.target.Flows(fifty) == 3 && r.target.Flows(fifty6) == 2 })
		r.cut()
		r.arrived()
		there.await("the fast path", func() bool {
			before := forwardedBy(t, node)
			for _, s := range streams {
				s.proceeds(10)
			}
			return forwardedBy(t, node) == before
		})
		flows := node.Run(t, "", "nft", "list", "set", "netdev", fastpath.Table, "tcp_flows4")
		of := func(port int) bool { return strings.Contains(flows, fmt.Sprint(" . ", port, " timeout")) }
		if !of(81) || n == 0 && of(86) {
			t.Errorf("want a flow of port 81 and none of what is refused: %s", flows)
		}
		if left := there.node.Flows(fifty) + there.node.Flows(fifty6); n == 0 && left != 0 {
			t.Errorf("the node's connection tracking still has %d entries of connections that it does not see", left)
		}
		if n == 0 {
			node.Run(t, "", "nft", "flush", "chain", "inet", "keeper", "forward")
			refused.proceeds(10)
		}
		r.finish()
	}
	refused.proceeds(10)
}
