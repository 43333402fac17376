package webhook

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

var poolGVK = schema.GroupVersionKind{Group: "floatip.io", Version: "v1alpha1", Kind: "FloatingIPPool"}

func poolJSON(name, spec string) string {
	return fmt.Sprintf(`{"apiVersion":"floatip.io/v1alpha1","kind":"FloatingIPPool","metadata":{"name":%q},"spec":%s}`, name, spec)
}

func TestPoolSyntax(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		name, pool, spec, text string
		fields                 []string
	}{
		{"fine", "a", `{"addresses":["192.168.100.50-192.168.100.99"],"networks":["192.168.100.0/24"],"gateways":["192.168.100.1"]}`, "", nil},
		{"both families", "a", `{"addresses":["192.168.100.0/24","2001:db8::/64"]}`, "", nil},
		{"not an address", "a", `{"addresses":["192.168.100.0/24","x"]}`, `\"x\"`, []string{"spec.addresses[1]"}},
		{"backwards", "a", `{"addresses":["192.168.100.9-192.168.100.5"]}`, "192.168.100.9", []string{"spec.addresses[0]"}},
		{"nothing left", "a", `{"addresses":["192.168.100.5-192.168.100.5"],"exclude":["192.168.100.5"]}`, "nothing is left", []string{"spec.addresses"}},
		{"bad gateway and bad exclude", "a", `{"addresses":["192.168.100.0/24"],"gateways":["g"],"exclude":["e"]}`, "", []string{"spec.exclude[0]", "spec.gateways[0]"}},
		{"unknown delivery", "a", `{"addresses":["192.168.100.0/24"],"delivery":"Tunnel"}`, "NodeNAT", []string{"spec.delivery"}},
		{"unknown firewall", "a", `{"addresses":["192.168.100.0/24"],"firewall":"Ask"}`, `"Allow", "Deny"`, []string{"spec.firewall"}},
		{"bad selectors", "a", `{"addresses":["192.168.100.0/24"],"namespaceSelector":{"matchExpressions":[{"key":"a","operator":"Is"}]},"nodeSelector":{"matchLabels":{"-":"x"}}}`,
			"", []string{"spec.namespaceSelector", "spec.nodeSelector"}},
		{"negative quarantine", "a", `{"addresses":["192.168.100.0/24"],"quarantine":"-5m"}`, "negative", []string{"spec.quarantine"}},
		{"name too long for a node label", strings.Repeat("a", 64), `{"addresses":["192.168.100.0/24"]}`, "63", []string{"metadata.name"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			response := w.post(PathPoolChange, review{kind: poolGVK, name: tc.pool, object: poolJSON(tc.pool, tc.spec)})
			if len(tc.fields) == 0 {
				if !response.Allowed || response.AuditAnnotations["action"] != string(Accepted) {
					t.Errorf("%+v", response.Result)
				}
				return
			}
			wantRefused(t, response.Result, http.StatusUnprocessableEntity, strings.ReplaceAll(tc.text, `\"`, `"`), tc.fields...)
		})
	}
}

// Held addresses stay inside of their pool: VMs are not renumbered.
func TestPoolInUse(t *testing.T) {
	w := worldWithVM(t, nil)
	shrunk := poolJSON("provider", `{"addresses":["192.168.100.55-192.168.100.59"]}`)
	grown := poolJSON("provider", `{"addresses":["192.168.100.40-192.168.100.99"]}`)
	dying := strings.Replace(shrunk, `"name":"provider"`, `"name":"provider","deletionTimestamp":"2026-01-02T03:04:05Z"`, 1)
	update := func(object string) review {
		return review{operation: admissionv1.Update, kind: poolGVK, name: "provider", object: object, old: grown}
	}
	response := w.post(PathPoolChange, update(shrunk))
	wantRefused(t, response.Result, http.StatusConflict, "192.168.100.50 (VM vms/a)", "spec.addresses")
	response = w.post(PathPoolChange, review{operation: admissionv1.Delete, kind: poolGVK, name: "provider", old: grown})
	wantRefused(t, response.Result, http.StatusConflict, "192.168.100.50 (VM vms/a)", "spec.addresses")
	for name, r := range map[string]review{
		"grown":          update(grown),
		"being deleted":  update(dying),
		"another, empty": {operation: admissionv1.Delete, kind: poolGVK, name: "empty", old: grown},
	} {
		if response := w.post(PathPoolChange, r); !response.Allowed {
			t.Errorf("%s: %v", name, response.Result)
		}
	}
}

// Who has much to look for is told where to begin, and how much there is.
func TestPoolInUseByMany(t *testing.T) {
	w := newWorld(t, testPool(t, "192.168.100.50-192.168.100.69"))
	for i := range 12 {
		claim := floatip.NewClaim()
		_, err := w.ledger.Reserve(t.Context(), ipam.Request{Claim: claim, Namespace: "vms"})
		if err == nil {
			owner := floatip.Owner{Namespace: "vms", Name: fmt.Sprintf("vm%d", i), UID: fmt.Sprintf("uid-%d", i)}
			_, err = w.ledger.Commit(t.Context(), claim, owner, nil, ipam.Cause{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	response := w.post(PathPoolChange, review{operation: admissionv1.Delete, kind: poolGVK, name: "provider", old: poolJSON("provider", `{}`)})
	wantRefused(t, response.Result, http.StatusConflict, "12 addresses are held: 192.168.100.50 (VM vms/vm0), ", "spec.addresses")
	wantRefused(t, response.Result, http.StatusConflict, "192.168.100.59 (VM vms/vm9), and 2 more; set drain: true", "spec.addresses")
}
