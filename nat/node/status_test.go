package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"floatip.io/floatip/nat/handover"
)

// nobody is an ordinary user.
const nobody = 65534

// TestStatus asks an agent on its socket: two addresses, one of which somebody else has, and a pod that is refused.
func TestStatus(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.world.Host.Address("eth0", "192.168.100.51/24")
	v := b.addVM(1, "192.168.100.50")
	b.addVM(2, "192.168.100.51")
	forged := v.entry
	forged.UID, forged.Name, forged.Machine.UID = uidOf(3), "forged", "vmi-unknown"
	b.view.Pods = append(b.view.Pods, forged)
	if _, err := AskStatus(t.Context(), b.node.File); err == nil || !strings.Contains(err.Error(), "no floatip-agent works") {
		t.Errorf("without an agent: %v", err)
	}
	b.start()
	b.publish()
	state := installed(fifty)
	state.Counters = []handover.Counter{{Floating: fifty, In: handover.Figure{Packets: 7, Bytes: 700}}}
	v.sidecar.set(state)
	b.awaitReport("ready and taken", func(r Report) bool { return ready("192.168.100.50")(r) && b.taken(fiftyOne)(r) })

	var s NodeStatus
	b.await("the counters", func() bool {
		b.agent.Wake()
		var err error
		if s, err = AskStatus(t.Context(), b.node.File); err != nil {
			t.Fatal(err)
		}
		return len(s.Addresses) == 2 && s.Addresses[0].In.Packets == 7
	})
	b.tells(`floatip_address_packets_total{address="192.168.100.50",pod="prod/virt-launcher-vm1",direction="in"} 7`)
	good, taken := s.Addresses[0], s.Addresses[1]
	if good.Address != fifty || good.Namespace != "prod" || good.VM != "vm1" || good.Pod != "virt-launcher-vm1" ||
		good.Interface != "red0" || good.Reason != "Ready" || good.Announced.IsZero() || good.Conflict != "" || good.Mode != Active {
		t.Errorf("the good one is %+v", good)
	}
	if taken.Reason == "Ready" || !strings.Contains(taken.Conflict, "on red0") || !taken.Announced.IsZero() {
		t.Errorf("the taken one is %+v", taken)
	}
	if len(s.Refused) != 1 || s.Refused[0].Pod != "prod/forged" || s.Round.IsZero() || s.Node != "node10" {
		t.Errorf("status is %+v", s)
	}

	// Somebody else on the node may not ask.
	var out []byte
	b.node.Do(func() error {
		child := exec.Command("/proc/self/exe", "-test.run=^TestStatusChild$", "-test.v")
		child.Env = append(os.Environ(), "STATUS_CHILD=1")
		child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		child.Dir = "/"
		var err error
		out, err = child.CombinedOutput()
		return err
	})
	if !strings.Contains(string(out), "only root may ask the agent") {
		t.Errorf("an ordinary user is told %s", out)
	}
}

// TestStatusChild is what TestStatus runs as another user, inside of the node's namespace.
func TestStatusChild(t *testing.T) {
	if os.Getenv("STATUS_CHILD") == "" {
		return
	}
	s, err := AskStatus(context.Background(), nil)
	fmt.Println(s, err)
}
