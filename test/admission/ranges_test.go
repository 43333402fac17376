package admission

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"floatip.io/floatip"
)

// installDefinitions makes the API server one of KubeVirt v1.9, without its programs.
func (w *world) installDefinitions(ctx context.Context) error {
	path := filepath.Join(w.root, "bin", "rig", "kubevirt19-definitions.json")
	if _, err := w.cluster.Kubectl(ctx, nil, "create", "-f", path); err != nil {
		return err
	}
	_, err := w.cluster.Kubectl(ctx, nil, "wait", "--for=condition=Established", "--timeout=60s", "-f", path)
	return err
}

// rawREST asks the API server as a user, without any type of KubeVirt's: the rig's are those of v1.8.
func (n *tenant) rawREST(user string) rest.Interface {
	n.t.Helper()
	config := n.cluster.RESTConfig()
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"system:masters"}}
	set, err := kubernetes.NewForConfig(config)
	if err != nil {
		n.t.Fatal(err)
	}
	return set.Discovery().RESTClient()
}

// rawObject is what the test reads of a VM or an instance.
type rawObject struct {
	Metadata metav1.ObjectMeta
	Spec     json.RawMessage
}

// send sends a body, wants to find all of its parts in what the API server has stored then, and reads that.
func (n *tenant) send(request *rest.Request, object string, parts ...string) (o rawObject) {
	n.t.Helper()
	raw, err := request.Body([]byte(object)).DoRaw(n.ctx)
	if err != nil {
		n.t.Fatalf("%v: %s", err, raw)
	}
	for _, part := range parts {
		if !strings.Contains(string(raw), part) {
			n.t.Errorf("%s\nis not in\n%s", part, raw)
		}
	}
	if err := json.Unmarshal(raw, &o); err != nil {
		n.t.Fatal(err)
	}
	return o
}

// TestPortRanges: with KubeVirt v1.9's own definitions, the port ranges of a VM come through all of floatip's hooks to the
// description of its pod. VM, instance and pod are sent as a person and KubeVirt's controller send them.
func TestPortRanges(t *testing.T) {
	w := startWith(t, (*world).startCluster, (*world).installDefinitions, (*world).install)
	n := w.tenant(t, 10)
	// As the API server writes it: keys in order.
	const nic = `{"masquerade":{},"name":"default","portRanges":[{"end":8999,"protocol":"TCP","start":8000},` +
		`{"end":5010,"protocol":"UDP","start":5000},{"end":22,"protocol":"TCP","start":22}]}`
	const spec = `{"domain":{"devices":{"interfaces":[` + nic + `]},"resources":{"requests":{"memory":"64M"}}},` +
		`"networks":[{"name":"default","pod":{}}]}`
	const template = `{"metadata":{"creationTimestamp":null},"spec":` + spec + `}`
	kubevirt := "/apis/kubevirt.io/v1/namespaces/" + n.ns
	person, controller := n.rawREST("somebody"), n.rawREST(kubevirtController)
	create := func(as rest.Interface) *rest.Request { return as.Post().SetHeader("Content-Type", "application/json") }

	vm := n.send(create(person).AbsPath(kubevirt, "virtualmachines"), `{"apiVersion":"kubevirt.io/v1","kind":"VirtualMachine",
		"metadata":{"name":"vm"},"spec":{"runStrategy":"Always","template":`+template+`}}`, nic)
	address := vm.Metadata.Annotations[floatip.AnnotationAddress]
	if address != n.address(1) {
		t.Fatalf("the VM has %v", vm.Metadata.Annotations)
	}
	// A change that floatip's hook for updates undoes, by its patch.
	n.send(person.Patch("application/merge-patch+json").AbsPath(kubevirt, "virtualmachines", "vm"),
		`{"metadata":{"annotations":{"floatip.io/address":null}}}`, nic, address)

	reference := func(kind, name string, uid any) string {
		return fmt.Sprintf(`[{"apiVersion":"kubevirt.io/v1","kind":%q,"name":%q,"uid":%q,"controller":true,"blockOwnerDeletion":true}]`, kind, name, uid)
	}
	vmi := n.send(create(controller).AbsPath(kubevirt, "virtualmachineinstances"), `{"apiVersion":"kubevirt.io/v1","kind":"VirtualMachineInstance",
		"metadata":{"name":"vm","ownerReferences":`+reference("VirtualMachine", "vm", vm.Metadata.UID)+`},"spec":`+spec+`}`,
		nic, `"asset":"floatip=`+address+`"`)
	if vmi.Metadata.Annotations[floatip.AnnotationAddress] != address {
		t.Errorf("the instance has %v, want %s", vmi.Metadata.Annotations, address)
	}

	annotations, err := json.Marshal(vmi.Metadata.Annotations) // KubeVirt copies them
	if err != nil {
		t.Fatal(err)
	}
	n.send(create(controller).AbsPath("/api/v1/namespaces", n.ns, "pods"), `{"apiVersion":"v1","kind":"Pod","metadata":{
		"generateName":"virt-launcher-vm-","annotations":`+string(annotations)+`,
		"labels":{"kubevirt.io":"virt-launcher","kubevirt.io/created-by":"`+string(vmi.Metadata.UID)+`"},
		"ownerReferences":`+reference("VirtualMachineInstance", "vm", vmi.Metadata.UID)+`},
		"spec":{"schedulerName":"nobody","containers":[{"name":"compute","image":"example/virt-launcher"}]}}`)
	pod := n.injected("vm")
	nat, err := floatip.ParsePodNAT([]byte(pod.Annotations[floatip.AnnotationNAT]))
	if err != nil {
		t.Fatal(err)
	}
	want := []floatip.Port{
		{Protocol: string(corev1.ProtocolTCP), Number: 8000, Last: 8999}, {Protocol: string(corev1.ProtocolUDP), Number: 5000, Last: 5010},
		{Protocol: string(corev1.ProtocolTCP), Number: 22},
	}
	if len(nat.Bindings) != 1 || nat.Bindings[0].Floating.String() != address || !slices.Equal(nat.Bindings[0].Ports, want) {
		t.Errorf("the description binds %+v, want %s with ports %+v", nat.Bindings, address, want)
	}
	t.Run("OptOutOfABareTemplate", func(t *testing.T) { optOutOfABareTemplate(t, n) })
}

// optOutOfABareTemplate: manifests/opt-out marks a template that has no metadata at all. KubeVirt's webhook would give it
// some, so this is shown without KubeVirt's programs.
func optOutOfABareTemplate(t *testing.T, n *tenant) {
	if _, err := n.cluster.Kubectl(n.ctx, nil, "apply", "-k", filepath.Join(n.root, "manifests", "opt-out")); err != nil {
		t.Fatal(err)
	}
	n.wait("the policy to mark the template", func(ctx context.Context) error {
		raw, err := n.rawREST("somebody").Post().AbsPath("/apis/kubevirt.io/v1/namespaces", n.ns, "virtualmachines").
			Param("dryRun", "All").SetHeader("Content-Type", "application/json").Body([]byte(`{"apiVersion":"kubevirt.io/v1",
			"kind":"VirtualMachine","metadata":{"name":"bare","annotations":{"floatip.io/enabled":"false"}},
			"spec":{"runStrategy":"Halted","template":{"spec":{"domain":{"devices":{}}}}}}`)).DoRaw(ctx)
		if err == nil && !strings.Contains(string(raw), `"template":{"metadata":{"annotations":{"floatip.io/enabled":"false"}}`) {
			err = fmt.Errorf("it is %s", raw)
		}
		return err
	})
}
