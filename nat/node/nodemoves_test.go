package node

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip"
)

// TestMoveOfATranslatedPod: where the nodes translate, the address goes to the guest's new node when KubeVirt says
// that the guest is there; before that nothing of it is on that node, and afterwards nothing on the old one.
// Connections break.
func TestMoveOfATranslatedPod(t *testing.T) {
	t.Parallel()
	r := newRoadBy(t, floatip.DeliveryNodeNAT, fifty)
	host := r.from.world.Host
	stream := startEcho(t, r.source.Guest, host, fifty.String()+":7")
	stream.pass(3)
	r.pods++
	r.target = r.to.addTarget(r.pods, r.source.entry)
	r.machine.Migration = Migration{SourceNode: r.from.name, TargetNode: r.to.name, TargetPod: r.target.entry.Name}
	r.publish()
	r.to.awaitReport("told of the target", func(report Report) bool {
		s, ok := report.Statuses[fifty]
		return ok && !s.Here && !s.NATReady.True
	})
	if diff := cmp.Diff(r.empty[r.to.name], inventory(t, r.to.node.Namespace)); diff != "" {
		t.Errorf("on the target before the guest is there (-before +after):\n%s", diff)
	}
	r.cut()
	r.finish()
	r.from.answers("vm1", fifty.String())
	if diff := cmp.Diff(r.empty[r.to.name], inventory(t, r.to.node.Namespace)); diff != "" {
		t.Errorf("left on the node that the guest has left (-before +after):\n%s", diff)
	}
	if flows := r.to.node.Flows(fifty); flows != 0 {
		t.Errorf("the node that the guest has left still knows %d flows", flows)
	}
}
