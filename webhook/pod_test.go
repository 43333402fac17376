package webhook

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"floatip.io/floatip"
	"floatip.io/floatip/webhook/kubevirt"
)

const (
	kubevirtController = "system:serviceaccount:kubevirt:kubevirt-controller"
	vmiOwner           = `{"apiVersion":"kubevirt.io/v1","kind":"VirtualMachineInstance","name":"a","uid":"uid-vmi","controller":true}`
	podSpec            = `{"initContainers":[{"name":"container-disk-binary"}],"containers":[{"name":"compute"}],"volumes":[{"name":"sockets"}],"nodeSelector":{"kubevirt.io/schedulable":"true"}}`
)

func launcher(annotations, spec string) string {
	return fmt.Sprintf(`{"metadata":{"generateName":"virt-launcher-a-","namespace":"vms","labels":{"kubevirt.io":"virt-launcher"},
		"annotations":%s,"ownerReferences":[%s]},"spec":%s}`, annotations, vmiOwner, spec)
}

// addVMI makes the VMI of the VM "a" known to the cluster.
func (w *world) addVMI(spec string) {
	w.t.Helper()
	object := &kubevirt.VirtualMachineInstance{}
	if err := json.Unmarshal([]byte(vmi("null", spec)), object); err != nil {
		w.t.Fatal(err)
	}
	object.UID = "uid-vmi"
	w.vmis["vms/a"] = object
}

// The golden file is the patch of the usual launcher pod: whoever changes what is injected sees it.
func TestCreatePodGolden(t *testing.T) {
	w := worldWithVM(t, nil)
	w.addVMI(masquerade)
	response := w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: launcher(`{"floatip.io/address":"192.168.100.50"}`, podSpec)})
	var got, want any
	if err := json.Unmarshal(response.Patch, &got); err != nil {
		t.Fatal(err)
	}
	golden, err := os.ReadFile("testdata/pod-patch.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(golden, &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("patch (-want +got):\n%s", diff)
	}
}

func TestCreatePodInjects(t *testing.T) {
	w := worldWithVM(t, nil)
	w.addVMI(masquerade)
	for _, tc := range []struct{ name, annotations, spec string }{
		{"as KubeVirt renders it", `{"floatip.io/address":"192.168.100.50"}`, podSpec},
		{"with a forged NAT description", `{"floatip.io/nat":"{}"}`, podSpec},
		{"without annotations", `null`, podSpec},
		{"with nothing else", `{}`, `{"containers":[{"name":"compute"}]}`},
		{"with null lists", `{}`, `{"initContainers":null,"volumes":null,"nodeSelector":null,"containers":[{"name":"compute"}]}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			object := launcher(tc.annotations, tc.spec)
			after := apply(t, object, w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: object}))
			var pod podView
			if err := json.Unmarshal([]byte(after), &pod); err != nil {
				t.Fatal(err)
			}
			if len(pod.Spec.InitContainers) == 0 || pod.Spec.InitContainers[0].Name != floatip.SidecarContainer {
				t.Errorf("init containers: %v", pod.Spec.InitContainers)
			}
			if !hasName(pod.Spec.Volumes, floatip.SocketVolume) || !hasName(pod.Spec.Volumes, floatip.NATVolume) {
				t.Errorf("volumes: %v", pod.Spec.Volumes)
			}
			if pod.Spec.NodeSelector["pool.floatip.io/provider"] != "true" {
				t.Errorf("node selector: %v", pod.Spec.NodeSelector)
			}
			if got := pod.Metadata.Annotations[floatip.AnnotationAddress]; got != "192.168.100.50" {
				t.Errorf("the pod shows the address %q", got)
			}
			nat, err := floatip.ParsePodNAT([]byte(pod.Metadata.Annotations[floatip.AnnotationNAT]))
			if err != nil {
				t.Fatal(err)
			}
			if nat.Owner.UID != "uid-a" || nat.Bindings[0].Floating != mustAddr("192.168.100.50") || nat.Bindings[0].Fixed != mustAddr("10.0.2.2") {
				t.Errorf("NAT description: %+v", nat)
			}
			again := w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: after})
			if !again.Allowed || len(again.Patch) > 0 {
				t.Errorf("called again: %s", again.Patch)
			}
		})
	}
}

// A pod of the class Guaranteed stays one; in any other the sidecar asks for little.
func TestSidecarResources(t *testing.T) {
	const equal = `{"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"1000m","memory":"1Gi"}}`
	for _, tc := range []struct {
		name, spec string
		guaranteed bool
	}{
		{"requests equal limits", `{"containers":[{"name":"compute","resources":` + equal + `}]}`, true},
		{"limits only", `{"containers":[{"name":"compute","resources":{"limits":{"cpu":"1","memory":"1Gi"}}}]}`, true},
		{"nothing", `{"containers":[{"name":"compute"}]}`, false},
		{"requests only", `{"containers":[{"name":"compute","resources":{"requests":{"cpu":"1","memory":"1Gi"}}}]}`, false},
		{"less requested", `{"containers":[{"name":"compute","resources":{"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"1","memory":"1Mi"}}}]}`, false},
		{"an init container without", `{"initContainers":[{"name":"a"}],"containers":[{"name":"compute","resources":` + equal + `}]}`, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var pod podView
			if err := json.Unmarshal([]byte(`{"spec":`+tc.spec+`}`), &pod); err != nil {
				t.Fatal(err)
			}
			resources := sidecarResources(pod.guaranteed())
			for name, limit := range resources.Limits {
				if request := resources.Requests[name]; (request.Cmp(limit) == 0) != tc.guaranteed {
					t.Errorf("%s: requests %s, limit %s, want equal: %t", name, &request, &limit, tc.guaranteed)
				}
			}
		})
	}
}

// Whoever may create pods can write labels, annotations and owner references; none of it makes floatip inject.
func TestCreatePodIgnores(t *testing.T) {
	forged := `{"floatip.io/nat":"{}","floatip.io/address":"192.168.100.50"}`
	for _, tc := range []struct {
		name, user, object, reason string
	}{
		{"a tenant's look-alike", testUser, launcher(forged, podSpec), "not made by KubeVirt's controller"},
		{"another service account of KubeVirt's name", "system:serviceaccount:vms:kubevirt-controller", launcher(forged, podSpec), "not made by KubeVirt's controller"},
		{"a temporary pod", kubevirtController, launcher(`{"floatip.io/nat":"{}","kubevirt.io/ephemeral-provisioning":"true"}`, podSpec), "temporary"},
		{"a hotplug pod", kubevirtController, strings.Replace(launcher(forged, podSpec), "virt-launcher\"", "hotplug-disk\"", 1), "not a launcher"},
		{"no owner", kubevirtController, strings.Replace(launcher(forged, podSpec), vmiOwner, "", 1), "no VMI"},
		{"an owner that is no controller", kubevirtController, strings.Replace(launcher(forged, podSpec), `"controller":true`, `"controller":false`, 1), "no VMI"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := worldWithVM(t, nil)
			w.addVMI(masquerade)
			response := w.post(PathPodCreate, review{kind: podGVK, user: tc.user, object: tc.object})
			if !response.Allowed || response.AuditAnnotations["action"] != string(Ignored) || !strings.Contains(response.AuditAnnotations["reason"], tc.reason) {
				t.Fatalf("%+v, want it ignored: %s", response, tc.reason)
			}
			if diff := cmp.Diff([]string{"remove /metadata/annotations/floatip.io~1nat"}, operations(t, response)); diff != "" {
				t.Errorf("patch (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCreatePodOwnership(t *testing.T) {
	object := launcher(`{}`, podSpec)
	t.Run("VMI of a VM without an address", func(t *testing.T) {
		w := worldWithVM(t, nil)
		w.addVMI(masquerade)
		w.vmis["vms/a"].OwnerReferences[0].UID = "uid-other"
		response := w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: object})
		if !response.Allowed || len(response.Patch) > 0 {
			t.Errorf("%+v", response)
		}
	})
	t.Run("VMI with another UID", func(t *testing.T) {
		w := worldWithVM(t, nil)
		w.addVMI(masquerade)
		w.vmis["vms/a"].UID = types.UID("uid-later")
		response := w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: object})
		wantRefusedText(t, response.Result, http.StatusNotFound, "VMI vms/a with UID uid-vmi of the pod: ")
	})
	t.Run("VMI without a VM", func(t *testing.T) {
		w := worldWithVM(t, nil)
		w.addVMI(masquerade)
		w.vmis["vms/a"].OwnerReferences = []metav1.OwnerReference{}
		response := w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: object})
		if !response.Allowed || len(response.Patch) > 0 {
			t.Errorf("%+v", response)
		}
	})
	t.Run("other binding", func(t *testing.T) {
		w := worldWithVM(t, nil)
		w.addVMI(bridge)
		response := w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: object})
		if response.AuditAnnotations["action"] != string(Unnatable) || len(response.Patch) > 0 {
			t.Errorf("%+v", response)
		}
	})
	t.Run("volume of the sidecar's name", func(t *testing.T) {
		w := worldWithVM(t, nil)
		w.addVMI(masquerade)
		taken := launcher(`{}`, strings.Replace(podSpec, `"sockets"`, `"floatip-socket"`, 1))
		response := w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: taken})
		wantRefused(t, response.Result, http.StatusConflict, "floatip-socket", "spec.volumes")
	})
}

func TestGuestOf(t *testing.T) {
	spec := func(network kubevirt.PodNetwork, nic kubevirt.Interface) kubevirt.VMISpec {
		nic.Name, nic.Masquerade = "default", &kubevirt.Masquerade{}
		return kubevirt.VMISpec{
			Domain:   kubevirt.Domain{Devices: kubevirt.Devices{Interfaces: []kubevirt.Interface{{Name: "other"}, nic}}},
			Networks: []kubevirt.Network{{Name: "other"}, {Name: "default", Pod: &network}},
		}
	}
	for _, tc := range []struct {
		name     string
		spec     kubevirt.VMISpec
		floating string
		want     floatip.Binding
	}{
		{"defaults", spec(kubevirt.PodNetwork{}, kubevirt.Interface{}), "192.0.2.1", floatip.Binding{
			Fixed: mustAddr("10.0.2.2"), Gateway: mustAddr("10.0.2.1"), GuestNetwork: netip.MustParsePrefix("10.0.2.0/24")}},
		{"defaults, IPv6", spec(kubevirt.PodNetwork{}, kubevirt.Interface{}), "2001:db8::1", floatip.Binding{
			Fixed: mustAddr("fd10:0:2::2"), Gateway: mustAddr("fd10:0:2::1"), GuestNetwork: netip.MustParsePrefix("fd10:0:2::/120")}},
		{"network of its own, with bits of a host", spec(kubevirt.PodNetwork{VMNetworkCIDR: "10.11.12.13/30"}, kubevirt.Interface{}), "192.0.2.1", floatip.Binding{
			Fixed: mustAddr("10.11.12.14"), Gateway: mustAddr("10.11.12.13"), GuestNetwork: netip.MustParsePrefix("10.11.12.12/30")}},
		{"ports", spec(kubevirt.PodNetwork{}, kubevirt.Interface{Ports: []kubevirt.Port{{Port: 22}, {Port: 53, Protocol: "UDP"}}}), "192.0.2.1", floatip.Binding{
			Fixed: mustAddr("10.0.2.2"), Gateway: mustAddr("10.0.2.1"), GuestNetwork: netip.MustParsePrefix("10.0.2.0/24"),
			Ports: []floatip.Port{{Protocol: "TCP", Number: 22}, {Protocol: "UDP", Number: 53}}}},
		{"port ranges", spec(kubevirt.PodNetwork{}, kubevirt.Interface{PortRanges: []kubevirt.PortRange{
			{Protocol: "UDP", Start: 1, End: 65535}, {Protocol: "TCP", Start: 8000, End: 8999}, {Protocol: "TCP", Start: 9, End: 9},
		}}), "192.0.2.1", floatip.Binding{
			Fixed: mustAddr("10.0.2.2"), Gateway: mustAddr("10.0.2.1"), GuestNetwork: netip.MustParsePrefix("10.0.2.0/24"),
			Ports: []floatip.Port{{Protocol: "UDP", Number: 1, Last: 65535}, {Protocol: "TCP", Number: 8000, Last: 8999},
				{Protocol: "TCP", Number: 9}}}},
		{"ports and port ranges", spec(kubevirt.PodNetwork{}, kubevirt.Interface{
			Ports:      []kubevirt.Port{{Port: 22}, {Port: 8500}},
			PortRanges: []kubevirt.PortRange{{Protocol: "tcp", Start: 8000, End: 8999}, {Protocol: "TCP", Start: 8900, End: 9100}},
		}), "2001:db8::1", floatip.Binding{
			Fixed: mustAddr("fd10:0:2::2"), Gateway: mustAddr("fd10:0:2::1"), GuestNetwork: netip.MustParsePrefix("fd10:0:2::/120"),
			Ports: []floatip.Port{{Protocol: "TCP", Number: 22}, {Protocol: "TCP", Number: 8500},
				{Protocol: "TCP", Number: 8000, Last: 8999}, {Protocol: "TCP", Number: 8900, Last: 9100}}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g, err := guestOf(tc.spec)
			if err != nil {
				t.Fatal(err)
			}
			tc.want.Floating = mustAddr(tc.floating)
			if diff := cmp.Diff(tc.want, g.bind(tc.want.Floating), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
