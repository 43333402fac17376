package migration

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/test/story"
)

// withoutLabel moves the guest after its namespace has lost the label: the pod on the other node is made without the
// address, which the condition Carried says, with what to do. With the label back the next migration brings the address,
// without a restart. What went through it before is broken by then.
func withoutLabel(ctx context.Context, t *testing.T, s *story.Story) {
	for _, step := range []struct {
		label, reason, text string
		ready               bool
	}{
		{floatip.LabelEnabled + "-", v1alpha1.ReasonNotOptedIn, "set it and migrate or restart the VM", false},
		{floatip.LabelEnabled + "=true", v1alpha1.ReasonCarried, "", true},
	} {
		if out, err := s.Kubectl(ctx, "", "label", "namespace", story.Namespace, step.label); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		from := testvm.instance(ctx, t, s)
		if err := s.Rig.KubeVirt.Migrate(ctx, story.Namespace, story.VMName); err != nil {
			t.Fatal(err)
		}
		bounded, cancel := context.WithTimeout(ctx, within)
		err := process.Wait(bounded, nil, "the guest on the other node, and the truth about its address", func(ctx context.Context) error {
			now := testvm.instance(ctx, t, s)
			state := now.Status.MigrationState
			if now.Status.NodeName == from.Status.NodeName || state == nil || !state.Completed {
				return fmt.Errorf("the instance is on %s: %+v", now.Status.NodeName, state)
			}
			fip, err := s.FloatingIP(ctx, story.Floating)
			if err != nil {
				return err
			}
			c := meta.FindStatusCondition(fip.Status.Conditions, v1alpha1.ConditionCarried)
			if c == nil || c.Reason != step.reason || !strings.Contains(c.Message, step.text) {
				return fmt.Errorf("condition %s is %+v, want the reason %s", v1alpha1.ConditionCarried, c, step.reason)
			}
			if ready := fip.Status.Phase == v1alpha1.PhaseReady && fip.Status.Node == now.Status.NodeName; ready != step.ready {
				return fmt.Errorf("the FloatingIP is %s on %q", fip.Status.Phase, fip.Status.Node)
			}
			return nil
		})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
	}
}
