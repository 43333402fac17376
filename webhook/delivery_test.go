package webhook

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"

	"floatip.io/floatip"
	"floatip.io/floatip/webhook/firewall"
)

// nodeNATWorld has one VM, "a", whose pool has the delivery.
func deliveryWorld(t *testing.T, d floatip.Delivery) *world {
	t.Helper()
	w := worldWithVM(t, nil)
	w.deliveries["provider"] = d
	w.addVMI(masquerade)
	return w
}

// A launcher of a pool that the node translates stays as KubeVirt made it: no sidecar, no volume, no capability. Its
// description says so, and the pod goes to nodes that answer for the address.
func TestNodeNATPod(t *testing.T) {
	w := deliveryWorld(t, floatip.DeliveryNodeNAT)
	w.labels["vms"]["pod-security.kubernetes.io/enforce"] = "restricted"
	object := launcher(`{}`, podSpec)
	response := w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: object})
	after := apply(t, object, response)
	if action := response.AuditAnnotations["action"]; action != string(Described) {
		t.Errorf("action %s, want %s", action, Described)
	}
	var pod podView
	if err := json.Unmarshal([]byte(after), &pod); err != nil {
		t.Fatal(err)
	}
	if len(pod.Spec.InitContainers) != 1 || len(pod.Spec.Volumes) != 1 {
		t.Errorf("init containers %v, volumes %v: want KubeVirt's alone", pod.Spec.InitContainers, pod.Spec.Volumes)
	}
	if pod.Spec.NodeSelector["pool.floatip.io/provider"] != "true" {
		t.Errorf("node selector: %v", pod.Spec.NodeSelector)
	}
	nat, err := floatip.ParsePodNAT([]byte(pod.Metadata.Annotations[floatip.AnnotationNAT]))
	if err != nil || nat.Delivery != floatip.DeliveryNodeNAT || nat.Bindings[0].Floating != mustAddr("192.168.100.50") {
		t.Errorf("NAT description %+v, %v", nat, err)
	}
	if again := w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: after}); !again.Allowed || len(again.Patch) > 0 {
		t.Errorf("called again: %s", again.Patch)
	}
}

// Where Kube-OVN answers for the addresses, a launcher may go to any node.
func TestKubeOVNPodGoesAnywhere(t *testing.T) {
	w := deliveryWorld(t, floatip.DeliveryKubeOVN)
	object := launcher(`{}`, podSpec)
	response := w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: object})
	after := apply(t, object, response)
	if action := response.AuditAnnotations["action"]; action != string(Described) || strings.Contains(after, "pool.floatip.io/") {
		t.Errorf("action %s: %s", action, after)
	}
}

// In a namespace that forbids NET_ADMIN a VM of such a pool is told nothing, since nothing is wrong.
func TestNodeNATInARestrictedNamespace(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	w.deliveries["provider"] = floatip.DeliveryNodeNAT
	w.labels["vms"]["pod-security.kubernetes.io/enforce"] = "restricted"
	if response := w.post(PathVMCreate, review{kind: vmGVK, object: vm("a", nil)}); !response.Allowed || len(response.Warnings) > 0 {
		t.Errorf("allowed %t, warnings %v", response.Allowed, response.Warnings)
	}
	w = deliveryWorld(t, floatip.DeliveryNodeNAT)
	w.labels["vms"]["pod-security.kubernetes.io/enforce"] = "restricted"
	response := w.post(PathVMICreate, review{kind: vmiGVK, object: vmi("null", masquerade)})
	if action := response.AuditAnnotations["action"]; action != string(Carried) || len(response.Warnings) > 0 {
		t.Errorf("VMI: action %s, warnings %v", action, response.Warnings)
	}
}

// What the CNI enforces is not enforced a second time; the allow list is the VM's own.
func TestNodeNATFirewall(t *testing.T) {
	w := deliveryWorld(t, floatip.DeliveryNodeNAT)
	w.defaults["provider"] = firewall.DefaultDeny
	object := launcher(`{}`, podSpec)
	after := apply(t, object, w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: object}))
	nat, err := floatip.ParsePodNAT([]byte(annotation(t, after, floatip.AnnotationNAT)))
	if err != nil || nat.Firewall == nil || nat.Firewall.Ingress.Everything || !nat.Firewall.Egress.Everything {
		t.Errorf("firewall %+v, %v: want the pool's default to close it", nat.Firewall, err)
	}
}

// Pods that run were made for one delivery, so the pool keeps it while addresses are held, and the refusal says by whom.
func TestChangeOfDelivery(t *testing.T) {
	w := worldWithVM(t, nil)
	pool := func(delivery string) string {
		return poolJSON("provider", `{"addresses":["192.168.100.50-192.168.100.59"]`+delivery+`}`)
	}
	change := review{
		operation: admissionv1.Update, kind: poolGVK, name: "provider", object: pool(`,"delivery":"NodeNAT"`), old: pool(""),
	}
	response := w.post(PathPoolChange, change)
	wantRefused(t, response.Result, http.StatusConflict, "from Leg to NodeNAT: pool provider: 1 addresses are held: 192.168.100.50 (VM vms/a)", "spec.delivery")
	same := change
	same.object = pool(`,"delivery":"Leg"`)
	if response := w.post(PathPoolChange, same); !response.Allowed {
		t.Errorf("the default written out: %v", response.Result)
	}
	empty := change
	empty.name = "empty"
	empty.object, empty.old = strings.Replace(change.object, "provider", "empty", 1), strings.Replace(change.old, "provider", "empty", 1)
	if response := w.post(PathPoolChange, empty); !response.Allowed {
		t.Errorf("a pool of which nothing is held: %v", response.Result)
	}
}

// One VM's addresses are delivered in one way, and nothing stays promised after the refusal.
func TestPoolsOfTwoDeliveries(t *testing.T) {
	w := newWorld(t, namedPool(t, "four", "192.168.100.50-192.168.100.51"), namedPool(t, "six", "2001:db8::/64"))
	w.deliveries["six"] = floatip.DeliveryNodeNAT
	object := vm("a", map[string]string{floatip.AnnotationPool: "four,six"})
	response := w.post(PathVMCreate, review{kind: vmGVK, object: object})
	wantRefused(t, response.Result, http.StatusUnprocessableEntity, "pool four says Leg, pool six says NodeNAT", "metadata.annotations[floatip.io/pool]")
	for _, first := range []string{"192.168.100.50", "2001:db8::", "2001:db8::1"} {
		if line, promised := w.ledger.Lookup(mustAddr(first)); promised {
			t.Errorf("still promised: %+v", line)
		}
	}
}

// Kube-OVN knows no allow list: a VM with one is refused, and one that gets it later is told so.
func TestKubeOVNAllowList(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	w.deliveries["provider"] = floatip.DeliveryKubeOVN
	response := w.post(PathVMCreate, review{kind: vmGVK, object: vm("a", map[string]string{floatip.AnnotationAllow: "tcp/22"})})
	wantRefused(t, response.Result, http.StatusUnprocessableEntity, "every host reaches the VM", "metadata.annotations[floatip.io/allow]")

	w = deliveryWorld(t, floatip.DeliveryKubeOVN)
	owner := floatip.Owner{Namespace: "vms", Name: "a", UID: "uid-a"}
	w.vms["vms/a/uid-a"] = map[string]string{floatip.AnnotationAllow: "tcp/22"}
	passes, problems, err := FirewallOf(t.Context(), w, Guarded{
		Owner: owner, Delivery: floatip.DeliveryKubeOVN, Spec: w.vmis["vms/a"].Spec,
	})
	if err != nil || passes != nil || len(problems) != 1 || problems[0].Reason != firewall.AllowNotEnforced {
		t.Errorf("firewall %+v, problems %v, %v", passes, problems, err)
	}
}

// A port list is no wish to floatip: KubeVirt keeps it in the pod, whoever translates to the pod's address. The VM is let
// through without a warning, its instance carries the address, and no sidecar comes into its pod.
func TestKubeOVNPortList(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.59"))
	w.deliveries["provider"] = floatip.DeliveryKubeOVN
	listing := strings.Replace(masquerade, `"masquerade":{}`, `"masquerade":{},"ports":[{"port":22}],"portRanges":[{"protocol":"UDP","start":8,"end":9}]`, 1)
	if listing == masquerade {
		t.Fatalf("no interface to list ports on: %s", masquerade)
	}
	object := strings.Replace(vm("a", nil), `"spec":{`, `"spec":{"template":{"spec":`+listing+`},`, 1)
	if response := w.post(PathVMCreate, review{kind: vmGVK, object: object}); !response.Allowed || len(response.Warnings) > 0 {
		t.Errorf("allowed %t, warnings %v", response.Allowed, response.Warnings)
	}
	w = deliveryWorld(t, floatip.DeliveryKubeOVN)
	w.addVMI(listing)
	if response := w.post(PathVMICreate, review{kind: vmiGVK, object: vmi("null", listing)}); !response.Allowed ||
		len(response.Warnings) > 0 || response.AuditAnnotations["action"] != string(Carried) {
		t.Errorf("instance: allowed %t, warnings %v, %v", response.Allowed, response.Warnings, response.AuditAnnotations)
	}
	pod := launcher(`{}`, podSpec)
	response := w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: pod})
	if response.AuditAnnotations["action"] != string(Described) || strings.Contains(apply(t, pod, response), floatip.SidecarContainer) {
		t.Errorf("pod: %v", response.AuditAnnotations)
	}
}

// What KubeOVN needs is asked for, and what it cannot do is refused.
func TestKubeOVNPool(t *testing.T) {
	w := newWorld(t)
	for spec, field := range map[string]string{
		`"delivery":"KubeOVN"`: "spec.kubeOVN.externalSubnet",
		`"delivery":"KubeOVN","kubeOVN":{"externalSubnet":"e"},"firewall":"Deny"`: "spec.firewall",
		`"kubeOVN":{"externalSubnet":"e"}`:                                        "spec.kubeOVN",
		`"delivery":"KubeOVN","kubeOVN":{"externalSubnet":"e"}`:                   "",
	} {
		object := poolJSON("a", `{"addresses":["192.168.100.0/24"],`+spec+`}`)
		response := w.post(PathPoolChange, review{kind: poolGVK, name: "a", object: object})
		if field == "" {
			if !response.Allowed {
				t.Errorf("%s: %v", spec, response.Result)
			}
			continue
		}
		wantRefused(t, response.Result, http.StatusUnprocessableEntity, "", field)
	}
}
