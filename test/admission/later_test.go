package admission

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/test/rig/process"
)

// A webhook that comes after floatip's and changes the VM has floatip called again: same claim, same address. If it
// changes the wish, floatip follows.
func reinvocation(t *testing.T, w *world) {
	for _, tc := range []struct {
		name, operations string
		want             int
	}{
		{"a label", `[{"op":"add","path":"/metadata/labels","value":{"changed":"yes"}}]`, 1},
		{"another request", `[{"op":"add","path":"/metadata/annotations/floatip.io~1request","value":"ADDRESS"}]`, 5},
		{"floatip's keys", `[{"op":"remove","path":"/metadata/annotations/floatip.io~1claim"},
			{"op":"remove","path":"/metadata/annotations/floatip.io~1address"}]`, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			n := w.tenant(t, 10)
			var calls atomic.Int32
			operations := strings.ReplaceAll(tc.operations, "ADDRESS", n.address(5))
			n.mutating(func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
				calls.Add(1)
				return patched(operations)
			})
			vm := n.create("vm", map[string]string{"of": "the user"})
			if calls.Load() == 0 {
				t.Fatal("the other webhook was not called")
			}
			if got := n.bound(vm); got != n.address(tc.want) {
				t.Errorf("the VM got %s, want %s", got, n.address(tc.want))
			}
			if lines := n.lines(); len(lines) != 1 {
				t.Errorf("one VM, and the ledger has %v", lines)
			}
			rounds := n.audit(n.ns, "virtualmachines", vm.Name, "create").rounds("vm-create.floatip.io")
			if rounds < 1 {
				t.Error("floatip was not called again")
			}
		})
	}
}

// forgedLater: where another webhook writes one of floatip's keys into a VM that floatip was not asked about, since it opted
// out, floatip finds it when the VM is to be stored.
func forgedLater(t *testing.T, w *world) {
	n := w.tenant(t, 10)
	keys := map[string]string{"address": n.address(9), "claim": strings.Repeat("0", 32)}
	n.mutating(func(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return patched(fmt.Sprintf(`[{"op":"add","path":"/metadata/annotations/floatip.io~1%s","value":%q}]`, r.Name, keys[r.Name]))
	})
	for key, other := range map[string]string{"address": "claim", "claim": "address"} {
		err := n.admin.Create(n.ctx, n.newVM(key, map[string]string{floatip.LabelEnabled: "false"}))
		wantRefusal(t, "a VM with "+key+" alone", err, `"vm-commit.floatip.io"`, "metadata.annotations[floatip.io/"+other+"]: Invalid value")
	}
}

// What is refused after floatip has promised an address costs nobody the address: not whoever corrects the object and
// tries again at once, and, once the promise is old, nobody.
func rejectedLater(t *testing.T, w *world) {
	for _, tc := range []struct {
		name string
		// reject has VMs refused, and returns what undoes that. The refusal says text.
		reject func(*tenant) (undo func())
		text   string
		// committed: the ledger has it by then.
		committed bool
	}{
		{"quota", func(n *tenant) func() {
			quota := &corev1.ResourceQuota{
				ObjectMeta: metav1.ObjectMeta{Namespace: n.ns, Name: "none"},
				Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{
					"count/virtualmachines.kubevirt.io": resource.MustParse("0"),
				}},
			}
			if err := n.admin.Create(n.ctx, quota); err != nil {
				n.t.Fatal(err)
			}
			// The controller of quotas learns of KubeVirt's resources up to half a minute after they were defined.
			counted := `{"status":{"hard":{"count/virtualmachines.kubevirt.io":"0"},"used":{"count/virtualmachines.kubevirt.io":"0"}}}`
			err := n.admin.Status().Patch(n.ctx, quota.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(counted)))
			if err != nil {
				n.t.Fatal(err)
			}
			n.wait("the quota to count", func(ctx context.Context) error {
				err := n.admin.Create(ctx, n.newVM("probe", map[string]string{floatip.LabelEnabled: "false"}), client.DryRunAll)
				if err == nil || !strings.Contains(err.Error(), "exceeded quota") {
					return fmt.Errorf("a VM: %v", err)
				}
				return nil
			})
			return func() {
				if err := n.admin.Delete(n.ctx, quota); err != nil {
					n.t.Fatal(err)
				}
			}
		}, "exceeded quota", true},
		{"another webhook", func(n *tenant) func() {
			var over atomic.Bool
			n.validating(func(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
				if over.Load() || r.Name != "vm" {
					return allowed()
				}
				err := process.Wait(n.ctx, nil, "the commit", func(context.Context) error {
					if len(n.lines(ipam.Pending)) == 0 {
						return errors.New("not yet")
					}
					return nil
				})
				return denied(fmt.Sprintf("not today (%v)", err))
			})
			return func() { over.Store(true) }
		}, "not today (<nil>)", true},
		{"the schema", func(n *tenant) func() {
			var over atomic.Bool
			n.mutating(func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
				if over.Load() {
					return allowed()
				}
				return patched(`[{"op":"add","path":"/spec/template/spec/hostname","value":5}]`)
			})
			return func() { over.Store(true) }
		}, "spec.template.spec.hostname", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			n := w.tenant(t, 10)
			undo := tc.reject(n)
			refuse := func(name, address string) {
				wantRefusal(t, "create", n.admin.Create(n.ctx, n.newVM(name, request(address))), tc.text)
			}
			refuse("vm", n.address(1))
			if pending := n.lines(ipam.Pending); (len(pending) == 1) != tc.committed {
				t.Errorf("the ledger has %v", pending)
			}
			undo()
			// Corrected, and tried again at once.
			n.wait("the corrected VM to be created", func(ctx context.Context) error {
				err := n.admin.Create(ctx, n.newVM("vm", request(n.address(1))))
				if err != nil && !strings.Contains(err.Error(), tc.text) { // the undoing is seen a moment later
					t.Fatalf("the corrected VM: %v", err)
				}
				return err
			})
			n.bound(n.get("vm"))
			if lines := n.lines(ipam.Pending, ipam.Bound); len(lines) != 1 {
				t.Errorf("one VM, and the ledger has %v", lines)
			}
		})
		t.Run(tc.name+", given up", func(t *testing.T) {
			t.Parallel()
			n := w.tenant(t, 10, noRest)
			undo := tc.reject(n)
			wantRefusal(t, "create", n.admin.Create(n.ctx, n.newVM("vm", request(n.address(1)))), tc.text)
			undo()
			n.free(n.address(1))
			err := n.admin.Create(n.ctx, n.newVM("another", request(n.address(1))))
			if !tc.committed {
				// In memory it stays promised for 45 s from the first call, and whoever asks is told so.
				wantRefusal(t, "another VM", err, n.address(1)+" is promised to VM "+n.ns+"/vm")
				return
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
}
