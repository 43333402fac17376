package webhook

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"floatip.io/floatip"
	"floatip.io/floatip/webhook/firewall"
)

// policy returns a NetworkPolicy of the namespace "vms" with the spec.
func policy(t *testing.T, name, spec string) *networkingv1.NetworkPolicy {
	t.Helper()
	p := &networkingv1.NetworkPolicy{}
	if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
		t.Fatal(err)
	}
	p.Namespace, p.Name = "vms", name
	return p
}

const masqueradeSSH = `{"domain":{"devices":{"interfaces":[{"name":"default","masquerade":{},
	"ports":[{"name":"ssh","port":22},{"port":53,"protocol":"UDP"}]}]}},"networks":[{"name":"default","pod":{}}]}`

// passing returns what the firewall in a pod's NAT description admits: the entries, or "everything", in and out.
func passing(t *testing.T, object string) (in, out []string) {
	t.Helper()
	nat, err := floatip.ParsePodNAT([]byte(annotation(t, object, floatip.AnnotationNAT)))
	if err != nil {
		t.Fatal(err)
	}
	if nat.Firewall == nil {
		return []string{"everything"}, []string{"everything"}
	}
	return texts(nat.Firewall.Ingress), texts(nat.Firewall.Egress)
}

func texts(a floatip.Admitted) []string {
	if a.Everything {
		return []string{"everything"}
	}
	list := []string{}
	for _, e := range a.Entries {
		list = append(list, e.String())
	}
	return list
}

// A new pod starts with the firewall that it shall have: a closed namespace is closed from the first packet.
func TestCreatePodFirewall(t *testing.T) {
	const deny = "podSelector: {}"
	const sshByName = `{podSelector: {matchLabels: {kubevirt.io: virt-launcher}},
		ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: ssh}]}]}`
	all, nothing := []string{"everything"}, []string{}
	for _, tc := range []struct {
		name     string
		policies []string
		vm       map[string]string // annotations
		spec     string
		pool     firewall.Default
		in, out  []string
	}{
		{"nobody restricts", nil, nil, masquerade, firewall.DefaultAllow, all, all},
		{"policy denies by default", []string{deny}, nil, masquerade, firewall.DefaultAllow, nothing, all},
		{"policy closes both directions", []string{"{podSelector: {}, policyTypes: [Ingress, Egress]}"}, nil, masquerade,
			firewall.DefaultAllow, nothing, nothing},
		{"policy opens a named port of the VM", []string{deny, sshByName}, nil, masqueradeSSH, firewall.DefaultAllow,
			[]string{"192.0.2.0/24 tcp/22"}, all},
		{"port ranges", nil, nil, portRanges(`{"protocol":"TCP","start":8000,"end":8999},{"protocol":"UDP","start":9,"end":9}`),
			firewall.DefaultAllow, []string{"0.0.0.0/0 icmp", "0.0.0.0/0 tcp/8000-8999", "0.0.0.0/0 udp/9", "::/0 icmp",
				"::/0 tcp/8000-8999", "::/0 udp/9"}, all},
		{"port ranges and an allow list", nil, map[string]string{floatip.AnnotationAllow: "tcp/8500-9500 from 192.0.2.7"},
			portRanges(`{"protocol":"TCP","start":8000,"end":8999}`), firewall.DefaultAllow, []string{"192.0.2.7 tcp/8500-8999"}, all},
		{"policy for other pods", []string{"podSelector: {matchLabels: {app: web}}"}, nil, masquerade, firewall.DefaultAllow, all, all},
		{"allow list", nil, map[string]string{floatip.AnnotationAllow: "tcp/22 from 192.0.2.7"}, masquerade,
			firewall.DefaultAllow, []string{"192.0.2.7 tcp/22"}, all},
		{"allow list that was stored unread", nil, map[string]string{floatip.AnnotationAllow: "ssh"}, masquerade,
			firewall.DefaultAllow, nothing, all},
		{"pool denies", nil, nil, masquerade, firewall.DefaultDeny, nothing, all},
		{"pool denies, the VM allows", nil, map[string]string{floatip.AnnotationAllow: "icmp from 192.0.2.7"}, masquerade,
			firewall.DefaultDeny, []string{"192.0.2.7 icmp"}, all},
		{"pool has a default of later times", nil, nil, masquerade, "Ask", nothing, all},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := worldWithVM(t, nil)
			w.addVMI(tc.spec)
			w.vms["vms/a/uid-a"], w.defaults["provider"] = tc.vm, tc.pool
			for _, spec := range tc.policies {
				w.policies = append(w.policies, policy(t, "p", spec))
			}
			object := launcher(`{}`, podSpec)
			response := w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: object})
			in, out := passing(t, apply(t, object, response))
			if diff := cmp.Diff([][]string{tc.in, tc.out}, [][]string{in, out}); diff != "" {
				t.Errorf("in and out (-want +got):\n%s", diff)
			}
		})
	}
}

// Who nobody speaks for is closed: a VM that is gone, a pool that is gone.
func TestCreatePodFirewallWithoutVoices(t *testing.T) {
	for name, gone := range map[string]func(*world){
		"VM":   func(w *world) { delete(w.vms, "vms/a/uid-a") },
		"pool": func(w *world) { delete(w.defaults, "provider") },
	} {
		t.Run(name, func(t *testing.T) {
			w := worldWithVM(t, nil)
			w.addVMI(masquerade)
			gone(w)
			object := launcher(`{}`, podSpec)
			response := w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: object})
			if in, _ := passing(t, apply(t, object, response)); len(in) > 0 {
				t.Errorf("admitted: %q", in)
			}
		})
	}
}

// failing cannot read the policies.
type failing struct{ Cluster }

func (failing) NetworkPolicies(context.Context, string) ([]*networkingv1.NetworkPolicy, error) {
	return nil, errors.New("the cache is not filled")
}

// A pod whose policies cannot be read is not made; KubeVirt tries again.
func TestCreatePodWithoutPolicies(t *testing.T) {
	w := worldWithVM(t, nil)
	w.addVMI(masquerade)
	w.hooks.Cluster = failing{w}
	response := w.post(PathPodCreate, review{kind: podGVK, user: kubevirtController, object: launcher(`{}`, podSpec)})
	wantRefusedText(t, response.Result, http.StatusInternalServerError, "could not decide")
	if strings.Contains(response.Result.Message, "cache") {
		t.Errorf("the user is told what only the log is for: %s", response.Result.Message)
	}
}

// What could not be translated is told with its place.
func TestFirewallProblems(t *testing.T) {
	w := worldWithVM(t, nil)
	w.addVMI(masquerade)
	w.vms["vms/a/uid-a"] = map[string]string{floatip.AnnotationAllow: "ssh"}
	w.policies = append(w.policies, policy(t, "web", "{podSelector: {}, ingress: [{ports: [{port: http}]}]}"))
	_, problems, err := FirewallOf(t.Context(), w, Guarded{
		Owner: floatip.Owner{Namespace: "vms", Name: "a", UID: "uid-a"},
		Pools: holdingOf(w.ledger.ByOwner("uid-a")).poolOf(), Spec: w.vmis["vms/a"].Spec,
	})
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, p := range problems {
		where, _, _ := strings.Cut(p.Error(), ": ")
		have = append(have, string(p.Reason)+" "+where)
	}
	want := []string{
		"AllowListMalformed metadata.annotations[floatip.io/allow]", "NetworkPolicyPortUnknown NetworkPolicy vms/web",
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
