package migration

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/test/story"
)

// way is how a migration comes about.
type way struct {
	name string
	ask  func(context.Context, *testing.T, *story.Story, traffic, *kubevirtv1.VirtualMachineInstance)
	// check looks at what is particular, when the guest has arrived. nil: nothing is.
	check func(context.Context, *testing.T, *story.Story, *kubevirtv1.VirtualMachineInstance)
}

// wayOf is that of the n-th of so many migrations.
func wayOf(n, of int) way {
	name := fmt.Sprint(n)
	switch n {
	case 1:
		return way{name + ", asked for while the webhook is away", askWithoutWebhook, nil}
	case 2:
		return byEviction(name)
	case of:
		return way{name + ", post-copy", askForPostCopy, wasPostCopy}
	}
	return way{name, ask, nil}
}

// ask is what virtctl migrate does.
func ask(ctx context.Context, t *testing.T, s *story.Story, _ traffic, _ *kubevirtv1.VirtualMachineInstance) {
	t.Helper()
	if err := s.Rig.KubeVirt.Migrate(ctx, story.Namespace, story.VMName); err != nil {
		t.Fatal(err)
	}
}

// byEviction has both guests leave their nodes at once.
func byEviction(name string) way {
	var before *kubevirtv1.VirtualMachineInstance
	return way{
		name: name + ", by eviction, as the other guest",
		ask: func(ctx context.Context, t *testing.T, s *story.Story, _ traffic, from *kubevirtv1.VirtualMachineInstance) {
			t.Helper()
			before = other.instance(ctx, t, s)
			evict(ctx, t, s, from)
			evict(ctx, t, s, before)
		},
		check: func(ctx context.Context, t *testing.T, s *story.Story, _ *kubevirtv1.VirtualMachineInstance) {
			t.Helper()
			arrived(ctx, t, s, other, before, 1)
		},
	}
}

// evict asks the API server to evict a guest's pod, as kubectl drain does. KubeVirt refuses, and makes a migration of it.
func evict(ctx context.Context, t *testing.T, s *story.Story, from *kubevirtv1.VirtualMachineInstance) {
	t.Helper()
	pods, err := launchers(ctx, s, from)
	if err != nil {
		t.Fatal(err)
	}
	for i := range pods {
		if pods[i].Spec.NodeName != from.Status.NodeName || pods[i].Status.Phase != corev1.PodRunning {
			continue // the guest has left it
		}
		err := s.Client.SubResource("eviction").Create(ctx, &pods[i], &policyv1.Eviction{})
		if !apierrors.IsTooManyRequests(err) || !strings.Contains(err.Error(), "Eviction triggered evacuation") {
			t.Fatalf("the eviction of %s: %v, want KubeVirt to make a migration of it", pods[i].Name, err)
		}
		return
	}
	t.Fatalf("none of %d pods of %s runs on %s", len(pods), from.Name, from.Status.NodeName)
}

// launchers are the pods that KubeVirt made for an instance.
func launchers(ctx context.Context, s *story.Story, of *kubevirtv1.VirtualMachineInstance) ([]corev1.Pod, error) {
	var pods corev1.PodList
	err := s.Client.List(ctx, &pods, client.InNamespace(of.Namespace), client.MatchingLabels{kubevirtv1.CreatedByLabel: string(of.UID)})
	return pods.Items, err
}

// postCopyPolicy has KubeVirt let the guest go on at the target after two seconds, when most of its memory is still on the
// source: at 4 MiB in a second the guest's takes twice that and more.
const postCopyPolicy = `
apiVersion: migrations.kubevirt.io/v1alpha1
kind: MigrationPolicy
metadata:
  name: post-copy
spec:
  allowPostCopy: true
  completionTimeoutPerGiB: 1
  bandwidthPerMigration: 4Mi
  selectors:
    namespaceSelector:
      kubernetes.io/metadata.name: ` + story.Namespace + "\n"

func askForPostCopy(ctx context.Context, t *testing.T, s *story.Story, all traffic, from *kubevirtv1.VirtualMachineInstance) {
	t.Helper()
	if out, err := s.Kubectl(ctx, postCopyPolicy, "apply", "-f", "-"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ask(ctx, t, s, all, from)
}

// wasPostCopy wants qemu on the old node to say that the guest went on before its memory had arrived; the next migrations are
// as usual.
func wasPostCopy(ctx context.Context, t *testing.T, s *story.Story, from *kubevirtv1.VirtualMachineInstance) {
	t.Helper()
	left := s.Rig.EndedLog(from.Status.NodeName, from.Name, string(from.UID))
	bounded, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	err := process.Wait(bounded, nil, "the old machine's end", func(context.Context) error {
		_, err := told(left, stillLine)
		return err
	})
	if err == nil {
		_, err = told(left, postCopyLine)
	}
	if err != nil {
		t.Errorf("the migration was not post-copy: %v; its state is %+v", err, testvm.instance(ctx, t, s).Status.MigrationState)
	}
	if out, err := s.Kubectl(ctx, "", "delete", "migrationpolicy", "post-copy"); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
