package admission

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"strings"
	"testing"

	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
)

// auditEvent is what the tests read of an event of the API server's audit log (audit.k8s.io/v1).
type auditEvent struct {
	Verb           string
	User           struct{ Username string }
	ObjectRef      *struct{ Resource, Namespace, Name, Subresource string }
	Annotations    map[string]string
	ResponseStatus struct{ Code int }
}

type auditEvents []auditEvent

// audit waits until the API server's audit log has requests of that verb for an object of the tenant, and returns them.
// What the API server names itself has no name in it.
func (n *tenant) audit(namespace, resource, name, verb string) (found auditEvents) {
	n.t.Helper()
	n.wait("the audit log to have "+verb+" of "+resource+" "+name, func(context.Context) (err error) {
		found, err = n.auditOf(func(e auditEvent) bool {
			ref := e.ObjectRef
			return ref != nil && ref.Resource == resource && ref.Subresource == "" && ref.Namespace == namespace && ref.Name == name &&
				e.Verb == verb
		})
		if err == nil && len(found) == 0 {
			err = errors.New("no such event yet")
		}
		return err
	})
	return found
}

func (n *tenant) auditOf(wanted func(auditEvent) bool) (found auditEvents, err error) {
	log, err := os.Open(n.cluster.AuditLog())
	if err != nil {
		return nil, err
	}
	defer log.Close()
	lines := bufio.NewReader(log)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return found, nil // the rest is being written
		}
		if !strings.Contains(line, `"`+n.ns) {
			continue
		}
		var event auditEvent
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			return nil, err
		}
		if wanted(event) {
			found = append(found, event)
		}
	}
}

// rounds returns in which round of mutating admission a webhook was called last: 0 or 1.
func (all auditEvents) rounds(webhook string) (last int) {
	for _, event := range all {
		for key, value := range event.Annotations {
			if strings.HasPrefix(key, "mutation.webhook.admission.k8s.io/round_1_") && strings.Contains(value, `"webhook":"`+webhook+`"`) {
				last = 1
			}
		}
	}
	return last
}

// Every decision is in the API server's own audit log, beside the user: what was done, about which address of which pool,
// by which claim, and why.
func auditLog(t *testing.T, w *world) {
	n := w.tenant(t, 20)
	unserved := n.ns + "-unserved"
	n.addNamespace(unserved, true)
	create := func(vm *kubevirtv1.VirtualMachine, options ...client.CreateOption) func() error {
		return func() error { return n.admin.Create(n.ctx, vm, options...) }
	}
	forged := map[string]string{floatip.AnnotationAddress: n.address(1), floatip.AnnotationClaim: floatip.NewClaim().String()}
	optedOut := maps.Clone(forged)
	optedOut[floatip.LabelEnabled] = "false"
	elsewhere := n.newVM("elsewhere", nil)
	elsewhere.Namespace = unserved
	running, unnatable := n.newVM("running", nil), n.newVM("bridged", nil)
	for _, vm := range []*kubevirtv1.VirtualMachine{running, unnatable} {
		vm.Spec.RunStrategy = new(kubevirtv1.RunStrategyAlways)
	}
	unnatable.Spec.Template.Spec.Domain.Devices.Interfaces[0].InterfaceBindingMethod =
		kubevirtv1.InterfaceBindingMethod{Bridge: &kubevirtv1.InterfaceBridge{}}

	type left map[string]string // hook/key: text that the value begins with; "-" for none
	about := func(hook, action, address, reason string) left {
		all := left{hook + "/action": action, hook + "/reason": reason}
		if address != "" {
			all[hook+"/address"], all[hook+"/pool"], all[hook+"/claim"] = address, n.ns, ""
		}
		return all
	}
	for _, tc := range []struct {
		what     string
		do       func() error
		resource string
		name     string
		verb     string
		code     int
		want     []left
	}{
		{"a new VM", create(n.newVM("plain", nil)), "virtualmachines", "plain", "create", 201, []left{
			about("vm-create.floatip.io", "reserved", n.address(1), "next free address"),
			about("vm-commit.floatip.io", "committed", n.address(1), "written to the ledger"),
		}},
		{"a request", create(n.newVM("static", request(n.address(7)))), "virtualmachines", "static", "create", 201, []left{
			about("vm-create.floatip.io", "reserved", n.address(7), "requested address"),
		}},
		{"a conflict", create(n.newVM("rival", request(n.address(7)))), "virtualmachines", "rival", "create", 409, []left{
			about("vm-create.floatip.io", "refused", "", n.address(7)+" is held by VM "+n.ns+"/static"),
			{"vm-commit.floatip.io/action": "-"},
		}},
		{"nonsense", create(n.newVM("typo", request("10.0.0.300"))), "virtualmachines", "typo", "create", 422, []left{
			about("vm-create.floatip.io", "refused", "", "metadata.annotations[floatip.io/request]"),
		}},
		{"a name that is taken", func() error {
			n.bound(n.get("plain")) // before, it may be taken for a second try at what was not stored
			return create(n.newVM("plain", nil))()
		}, "virtualmachines", "plain", "create", 409, []left{
			about("vm-create.floatip.io", "refused", "", `virtualmachines.kubevirt.io "plain" already exists`),
		}},
		{"a dry run", create(n.newVM("dry", nil), client.DryRunAll), "virtualmachines", "dry", "create", 201, []left{
			about("vm-create.floatip.io", "reserved", n.address(8), "next free address"),
			{"vm-commit.floatip.io/action": "kept", "vm-commit.floatip.io/reason": "dry run"},
		}},
		{"an opted-out VM with keys of another", create(n.newVM("out", optedOut)), "virtualmachines", "out", "create", 201, []left{
			about("vm-create.floatip.io", "opted-out", "", "the VM opted out"),
		}},
		{"a VM that no pool serves", create(elsewhere), "virtualmachines", "elsewhere", "create", 201, []left{
			about("vm-create.floatip.io", "unserved", "", "no pool with autoAssign"),
		}},
		{"a change of floatip's keys", func() error {
			return n.patch("plain", `{"metadata":{"annotations":{"floatip.io/address":null}}}`)
		}, "virtualmachines", "plain", "patch", 200, []left{
			about("vm-update.floatip.io", "restored", n.address(1), "floatip's annotations were changed"),
		}},
		{"a change of the request", func() error {
			return n.patch("static", `{"metadata":{"annotations":{"floatip.io/request":"`+n.address(9)+`"}}}`)
		}, "virtualmachines", "static", "patch", 422, []left{
			about("vm-update.floatip.io", "refused", "", "metadata.annotations[floatip.io/request]"),
		}},
		{"an instance", create(running), "virtualmachineinstances", "running", "create", 201, []left{
			about("vmi-create.floatip.io", "carried", n.address(8), "address of VM "+n.ns+"/running"),
		}},
		{"its pod", nil, "pods", "", "create", 201, []left{
			about("pod-create.floatip.io", "injected", n.address(8), ""),
		}},
		{"an instance with another binding", create(unnatable), "virtualmachineinstances", "bridged", "create", 201, []left{
			about("vmi-create.floatip.io", "unnatable", n.address(9), ""),
		}},
		{"a pool that is in use", func() error { return n.deletePool(n.ns) }, "floatingippools", n.ns, "delete", 409, []left{
			{"pool.floatip.io/action": "refused", "pool.floatip.io/reason": "4 addresses are held"},
		}},
		{"a pool", func() error { return n.setPool(n.ns, map[string]any{"drain": true}) }, "floatingippools", n.ns, "patch", 200, []left{
			{"pool.floatip.io/action": "accepted", "pool.floatip.io/pool": n.ns},
		}},
	} {
		if tc.do != nil {
			if err := tc.do(); (err == nil) != (tc.code < 300) {
				t.Fatalf("%s: %v", tc.what, err)
			}
		}
		namespace := n.ns
		switch {
		case tc.name == "elsewhere":
			namespace = unserved
		case tc.resource == "floatingippools":
			namespace = ""
		}
		found := n.audit(namespace, tc.resource, tc.name, tc.verb)
		last := found[len(found)-1]
		if last.ResponseStatus.Code != tc.code || last.User.Username == "" {
			t.Errorf("%s: code %d for %q, want %d", tc.what, last.ResponseStatus.Code, last.User.Username, tc.code)
		}
		for _, want := range tc.want {
			for key, text := range want {
				have, present := last.Annotations[key]
				have = strings.TrimPrefix(have, "floatip: ")
				if text == "-" && present || text != "-" && (!present || !strings.Contains(have, text)) {
					t.Errorf("%s: the audit log has %s: %q, want %q", tc.what, key, have, text)
				}
			}
		}
	}
}
