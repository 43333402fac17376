package admission

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/kubernetes"

	"floatip.io/floatip"
)

// bodies: VMs as people and programs write them, in bytes. What floatip does not know is stored as it would be without
// floatip, and what cannot be stored is refused by name, not by a crash, and costs no address.
func bodies(t *testing.T, w *world) {
	n := w.tenant(t, 50)
	quiet := n.ns + "-quiet"
	n.addNamespace(quiet, false)
	set, err := kubernetes.NewForConfig(w.cluster.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	post := func(namespace, body string) (map[string]any, error) {
		raw, err := set.Discovery().RESTClient().Post().
			AbsPath("/apis/kubevirt.io/v1/namespaces/"+namespace+"/virtualmachines").Param("fieldValidation", "Ignore").
			SetHeader("Content-Type", "application/json").Body([]byte(body)).DoRaw(n.ctx)
		if err != nil {
			var status struct{ Message string }
			if json.Unmarshal(raw, &status) == nil && status.Message != "" {
				err = fmt.Errorf("%w: %s", err, status.Message)
			}
			return nil, err
		}
		var object map[string]any
		return object, json.Unmarshal(raw, &object)
	}
	// Fields that floatip's views do not have, in a template whose identifiers KubeVirt need not choose.
	const spec = `"spec":{"runStrategy":"Halted","novel":{"a":[1.50,1e3]},"template":{"metadata":{"annotations":{"large":"%s"}},"spec":{
		"architecture":"amd64","hostname":"h","terminationGracePeriodSeconds":7,"evictionStrategy":"None","priorityClassName":"",
		"domain":{"firmware":{"uuid":"5d307ca9-b3ef-428c-8861-06e72d69f223","serial":"s"},"machine":{"type":"q35"},"memory":{"guest":"64Mi"},
		"clock":{"timezone":"Europe/Berlin"},"features":{"acpi":{"enabled":false},"hyperv":{"relaxed":{}}},"ioThreadsPolicy":"auto",
		"resources":{"overcommitGuestOverhead":true},"devices":{"rng":{},"watchdog":{"name":"w","i6300esb":{"action":"poweroff"}},
		"interfaces":[{"name":"default","masquerade":{},"macAddress":"02:00:00:00:00:01","pciAddress":"0000:01:00.0","novel":1}]}},
		"networks":[{"name":"default","pod":{"vmNetworkCIDR":"10.11.0.0/24"}}]}}}`
	const head = `{"apiVersion":"kubevirt.io/v1","kind":"VirtualMachine","metadata":{"name":"%s"%s},`
	for _, tc := range []struct{ name, metadata, rest string }{
		{"plain", ``, fmt.Sprintf(spec, "") + "}"},
		{"null-annotations", `,"annotations":null,"managedFields":null`, fmt.Sprintf(spec, "") + "}"},
		{"large", `,"annotations":{"a":"b"}`, fmt.Sprintf(spec, strings.Repeat("x", 1<<20)) + "}"},
		{"nested", ``, fmt.Sprintf(spec, "") + `,"unknown":` + strings.Repeat(`{"a":`, 1000) + "1" + strings.Repeat("}", 1000) + "}"},
		{"duplicate-keys", `,"annotations":{"a":"1","a":"2"},"labels":{"x":"1"},"labels":{"y":"2"}`, fmt.Sprintf(spec, "") + "}"},
	} {
		body := fmt.Sprintf(head, tc.name, tc.metadata) + tc.rest
		without, err := post(quiet, body)
		if err != nil {
			t.Errorf("%s, where floatip is not asked: %v", tc.name, err)
			continue
		}
		with, err := post(n.ns, body)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if diff := cmp.Diff(without["spec"], with["spec"]); diff != "" {
			t.Errorf("%s: the spec (-without floatip +with it):\n%s", tc.name, diff)
		}
		before, after := annotationsOf(without), annotationsOf(with)
		if after[floatip.AnnotationAddress] == nil || after[floatip.AnnotationClaim] == nil {
			t.Errorf("%s: no address: %v", tc.name, after)
		}
		delete(after, floatip.AnnotationAddress)
		delete(after, floatip.AnnotationClaim)
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("%s: other annotations (-without floatip +with it):\n%s", tc.name, diff)
		}
	}
	for _, tc := range []struct{ name, body, text string }{
		{"no-template", fmt.Sprintf(head, "no-template", ``) + `"spec":{"runStrategy":"Halted"}}`, "spec.template"},
		{"no-spec", fmt.Sprintf(head, "no-spec", ``) + `"status":{}}`, "spec"},
		{"wish-is-a-number", fmt.Sprintf(head, "number", `,"annotations":{"floatip.io/request":7}`) + fmt.Sprintf(spec, "") + "}", "annotations"},
		{"wish-is-nonsense", fmt.Sprintf(head, "nonsense", `,"annotations":{"floatip.io/request":"7"}`) + fmt.Sprintf(spec, "") + "}",
			"metadata.annotations[floatip.io/request]"},
	} {
		_, err := post(n.ns, tc.body)
		wantRefusal(t, tc.name, err, tc.text)
		if err != nil && strings.Contains(err.Error(), "Internal") {
			t.Errorf("%s: %v, want a 4xx", tc.name, err)
		}
	}
	if lines := n.lines(); len(lines) != 5 {
		t.Errorf("five VMs, and the ledger has %v", lines)
	}
}

func annotationsOf(object map[string]any) map[string]any {
	metadata, _ := object["metadata"].(map[string]any)
	annotations, _ := metadata["annotations"].(map[string]any)
	if annotations == nil {
		annotations = map[string]any{}
	}
	return annotations
}
